"""Makes buckets in the S3 store that the environment names (AWS_ENDPOINT_URL, AWS_…); those that are there stay.

    python -m deploy.buckets NAME …
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable


def make(names: Iterable[str], **connection: str) -> None:
    """Makes them; `connection` as `boto3.client` takes it, in place of the environment's."""
    import boto3

    s3 = boto3.client("s3", **connection)
    there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for name in names:
        if name not in there:
            s3.create_bucket(Bucket=name)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.buckets", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME")
    make(parser.parse_args().names)


if __name__ == "__main__":
    main()
