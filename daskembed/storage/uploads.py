"""Uploads in parts that killed writers left in a bucket of S3: there, and paid for, until somebody aborts them."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

_log = logging.getLogger(__name__)


def abort(url: str, owned: re.Pattern[str]) -> None:
    """Abort the unfinished uploads of those objects, as paths below `url`, in which `owned` is found.

    obstore has no request for that, so boto3 has to be there. That it is not, or may not, is no reason to stop a run.
    """
    if "AWS_SKIP_SIGNATURE" in os.environ:
        return
    try:
        import boto3
    except ImportError:
        return
    bucket, _, folder = url.removeprefix("s3://").partition("/")
    prefix = f"{folder}/" if folder else ""
    try:
        client: Any = boto3.client(
            "s3", region_name=os.environ.get("AWS_REGION"), endpoint_url=os.environ.get("AWS_ENDPOINT")
        )
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            for upload in page.get("Uploads", []):
                if owned.search(upload["Key"].removeprefix(prefix)):
                    client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    except Exception as error:
        _log.info("unfinished uploads below %s are left: %s", url, error)
