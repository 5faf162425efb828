# R with the packages arrow and sf: `Rscript tests/readers/read.R`, from the repository. With a GDAL that has the Parquet
# driver, sf opens files by itself, too.
suppressMessages({
  for (name in c("arrow", "sf")) {
    if (!require(name, character.only = TRUE, quietly = TRUE)) {
      cat("not run: R has no package", name, "\n")
      quit(status = 3)
    }
  }
})
path <- Sys.glob("tests/data/published/mean/*.gpq")
numbers <- matrix(0:511, nrow = 2, byrow = TRUE)
expected <- (numbers * 17) %% 251 / 64 - 2
urls <- sprintf("s3://made-up/chips/33TUL/claytile_33TUL_%04d.tif", 1:2)
box <- c(xmin = 12.41796875, ymin = 45.9794921875, xmax = 12.55078125, ymax = 46.025390625)

page <- paste(readLines("docs/reading.md"), collapse = "\n")
block <- regmatches(page, regexpr("(?s)```r\n.*?```", page, perl = TRUE))
block <- gsub("daskembed-demo/embeddings/33TUL_20190416_20190416_v001.gpq", path, block, fixed = TRUE)
eval(parse(text = gsub("```r?", "", block)))
stopifnot(identical(vectors, expected), identical(chips$source_url, urls))
stopifnot(identical(chips$date, as.Date(c("2019-04-01", "2019-04-16"))))
stopifnot(all.equal(unclass(st_bbox(places))[names(box)], box))
cat("R with arrow", as.character(packageVersion("arrow")), "reads mean, as docs/reading.md says\n")

if ("Parquet" %in% st_drivers()$name) {
  layer <- st_read(path, quiet = TRUE)
  stopifnot(identical(do.call(rbind, layer$embeddings), expected), identical(layer$source_url, urls))
  cat("R with sf", as.character(packageVersion("sf")), "reads mean\n")
} else {
  cat("sf has a GDAL without the Parquet driver\n")
}
