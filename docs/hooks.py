"""What the build of the documentation adds: the README as its first page, files that pages link to, the references."""

from __future__ import annotations

import argparse
import ast
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

import daskembed
from daskembed.cli.parser import make_parser
from daskembed.runs.options import RunOptions, default_of, words_of

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

TOP = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()(?P<target>[\w./-]+)(?P<anchor>#[\w-]*)?(?=\))")
LANGUAGES = {".yaml": "yaml", ".cff": "yaml", ".py": "python", ".txt": "text", "": "text"}
"""Of text files that are shown as pages; what has another suffix is copied."""

MORE = {
    "An encoder, a source or an output of your own": [
        "encoders.protocol.EncoderModule",
        "encoders.protocol.Model",
        "sources.protocol.Source",
        "output.protocol.Format",
    ],
    "Testing": ["testing"],
}
"""Of the reference of Python: what is imported from modules of the package."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the README, and files beside ``docs/`` that pages link to."""
    from mkdocs.structure.files import File, InclusionLevel

    waiting = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            added = {"inclusion": InclusionLevel.NOT_IN_NAV} if path != "README.md" else {}
            files.append(File.generated(config, site_path(path), content=content(path), **added))
        if path.endswith(".md"):
            linked = {repository_path(link["target"], path) for link in LINK.finditer((TOP / path).read_text())}
            new = {one for one in linked - seen if not one.startswith("docs/") and (TOP / one).is_file()}
            waiting += sorted(new)
            seen |= new
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links lead to where the build puts what they name, and put the references in their places."""
    path = next((one for one in ("README.md",) if site_path(one) == page.file.src_uri), None)
    path = path or (page.file.src_uri if page.file.generated_by else f"docs/{page.file.src_uri}")
    markdown = LINK.sub(lambda link: site_link(link, path), markdown)
    markdown = re.sub("<!-- commands: .* -->", lambda _: commands(), markdown)
    markdown = re.sub("<!-- modules: .* -->", lambda _: modules(), markdown)
    markdown = re.sub("<!-- options: .* -->", lambda _: options(), markdown)
    return re.sub("<!-- api: .* -->", lambda _: exported(), markdown)


def repository_path(target: str, page: str) -> str:
    """Path in the repository of what a page of the repository links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def site_path(path: str) -> str:
    """Where the build puts a file of the repository."""
    if path == "README.md":
        return "index.md"
    if not path.startswith("docs/") and Path(path).suffix in LANGUAGES:
        return f"{path}.md"
    return path.removeprefix("docs/")


def site_link(link: re.Match[str], page: str) -> str:
    """A link of a page of the repository as one of the site's."""
    path = repository_path(link["target"], page)
    if not (TOP / path).is_file():
        return link[0]  # the build says that it leads nowhere
    start = posixpath.dirname(site_path(page)) or "."
    return posixpath.relpath(site_path(path), start) + (link["anchor"] or "")


def content(path: str) -> str | bytes:
    """Of a file of the repository, as the build shows it."""
    file = TOP / path
    if file.suffix in LANGUAGES:
        return f"# {path}\n\n````{LANGUAGES[file.suffix]}\n{file.read_text()}````\n"
    return file.read_text() if file.suffix == ".md" else file.read_bytes()


def commands() -> str:
    """The reference of all commands, from the parser."""
    known = make_parser()
    of = next(action.choices for action in known._actions if isinstance(action, argparse._SubParsersAction))
    return "\n\n".join(command(name, one, {} if name == "run" else flags(of["run"])) for name, one in of.items())


def flags(parser: argparse.ArgumentParser) -> dict[str, str]:
    """What a command takes, as it is typed, and what it means."""
    found = {}
    for action in parser._actions:
        metavar = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
        value = " ".join(metavar) if isinstance(metavar, tuple) else metavar
        typed = ", ".join(f"`{' '.join(filter(None, (flag, value)))}`" for flag in action.option_strings or [""])
        if not isinstance(action, argparse._HelpAction):
            meaning = parser._get_formatter()._expand_help(action).replace("|", "\\|")
            found[typed] = f"{meaning} (required)" if action.required else meaning
    return found


def command(name: str, parser: argparse.ArgumentParser, of_run: dict[str, str]) -> str:
    """The reference of one command; flags that it shares with `run`, one and all, are left to that."""
    taken = flags(parser)
    lines = [f"## {parser.prog}", "", parser.description or "", ""]
    if of_run and of_run.items() <= taken.items():
        taken = {flag: meaning for flag, meaning in taken.items() if flag not in of_run}
        lines += ["It takes the flags of [`daskembed run`](#daskembed-run), and:", ""]
    if taken:
        lines += [
            "| argument | meaning |",
            "|---|---|",
            *(f"| {flag} | {meaning} |" for flag, meaning in taken.items()),
            "",
        ]
    if parser.epilog:
        lines += ["```text", parser.epilog.strip(), "```"]
    return "\n".join(lines)


def modules() -> str:
    """Every module in a line, by folder, from the docstrings."""
    lines = ["| module | what is in it |", "|---|---|"]
    for path in sorted((TOP / "daskembed").rglob("*.py"), key=lambda path: (path.parent, path.name)):
        said = ast.get_docstring(ast.parse(path.read_text())) or ""
        name = str(path.relative_to(TOP)).removesuffix("__init__.py")
        lines.append(f"| `{name}` | {said.partition(chr(10))[0].replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def options() -> str:
    """The keywords of `daskembed.run`, from the table of options."""
    lines = ["| keyword | what it means |", "|---|---|"]
    lines += [
        f"| `{name}` | {(words.keyword or words.help).replace('|', chr(92) + '|')}{default_of(name, words)} |"
        for name, words in words_of(RunOptions).items()
    ]
    return "\n".join(lines)


def exported() -> str:
    """Directives for all that the package exports, and for what is imported from its modules."""
    names = [f"daskembed.{name}" for name in daskembed.__all__ if not name.startswith("__")]
    parts = {"": names, **{f"## {title}": [f"daskembed.{name}" for name in more] for title, more in MORE.items()}}
    return "\n\n".join(line for title, names in parts.items() for line in (title, *(f"::: {name}" for name in names)))
