"""One page in the browser to accept, delete and replace the masks of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.core.errors import CimError
from cim.review.desk import open_desk
from cim.review.server import serve
from cim.review.session import Session


def main(args: argparse.Namespace) -> None:
    """Prints the address, and serves until Ctrl-C."""
    if not args.run.is_dir():
        raise CimError("no such run folder", path=args.run, fix="cim run --images PHOTOS --output RUN")
    files = [Path(args.config)] if args.config else [args.run / "config.yaml", args.run / "train" / "config.yaml"]
    named = args.config or next((path for path in files if path.is_file()), None)
    if named is None:
        raise CimError("no config in this run folder", path=args.run, expected="config.yaml", fix="pass --config")
    config = load_config(named)
    corrections = RunPaths(config).corrections
    server, address = serve(Session(open_desk(config, corrections), corrections), args.port)
    print(f"open in a browser on this machine:  {address}", flush=True)
    print(f"saved at every change:              {corrections}", flush=True)
    print("Ctrl-C ends it; the same cim run then goes on from these corrections", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
