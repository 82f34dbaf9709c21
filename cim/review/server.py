"""The page's server: for this machine alone, and for whoever has the address with its random token."""

from __future__ import annotations

import gzip
import io
import json
import secrets
from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.review.session import Conflict, Session

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ADDRESS = "127.0.0.1"
PAGE = {"": "index.html", "review.js": "review.js", "review.css": "review.css"}
KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
LARGEST = 100_000  # bytes of a change
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def serve(session: Session, port: int = 0) -> tuple[BaseWSGIServer, str]:
    """A server that listens already (``serve_forever`` answers), and the address to open.

    Args:
        port: 0: any that is free.

    Raises:
        CimError: the port is taken.
    """
    token = secrets.token_urlsafe(24)
    try:
        server = make_server(ADDRESS, port, _App(session, token), threaded=True, request_handler=_Quiet)
    except OSError as error:
        found = error.strerror or error
        raise CimError("cannot listen", path=f"{ADDRESS}:{port}", found=found, fix="another --port, or none") from None
    return server, f"http://{ADDRESS}:{server.server_port}/{token}/"


class _Quiet(WSGIRequestHandler):
    """Logs no requests: their addresses hold the token."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


class _App:
    def __init__(self, session: Session, token: str) -> None:
        self.session, self.token = session, token

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        request.max_content_length = LARGEST
        try:
            response = self._answer(request)
        except Conflict:
            response = _json({"error": "changed elsewhere"}, 409)
        except CimError as error:
            response = _json({"error": str(error)}, 400)
        except HTTPException as error:  # a body that is too large, or no json
            response = _json({"error": error.description}, error.code or 400)
        response.headers.update(SAFE)
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        port = request.environ["SERVER_PORT"]
        # Another name for this address would be a page from elsewhere that had its name resolved anew.
        known = request.environ.get("HTTP_HOST") in (f"{ADDRESS}:{port}", f"localhost:{port}")
        token, _, rest = request.path[1:].partition("/")
        if not known or not secrets.compare_digest(token.encode(), self.token.encode()):
            return Response("Open the address that cim review printed.\n", 403)
        name, _, of = rest.partition("/")
        if request.method == "POST":
            return self._change(request) if rest == "change" else Response(status=404)
        if request.method != "GET":
            return Response(status=405)
        if rest in PAGE:
            return _file(PAGE[rest])
        if rest == "photos":
            return _json(self.session.overview())
        views: dict[str, Callable[[int], Response]] = {
            "photo": lambda place: _json(self.session.photo(place)),
            "picture": self._picture,
            "atoms": self._atoms,
            "members": self._members,
        }
        if name in views and of.isdecimal():
            return views[name](int(of))
        return Response(status=404)

    def _change(self, request: Request) -> Response:
        what = request.get_json()  # refuses any other content type, so that no form of another page gets here
        if not isinstance(what, dict) or type(what.get("place")) is not int or not isinstance(what.get("do"), str):
            raise CimError("not a change", expected="place, version, do", found=str(what)[:80])
        return _json(self.session.change(what["place"], str(what.get("version")), what))

    def _picture(self, place: int) -> Response:
        """The photo, upright, as JPEG."""
        file = io.BytesIO()
        Image.fromarray(read_photo(self.session.sheet(place).record.path)).save(file, "JPEG", quality=90)
        return Response(file.getvalue(), mimetype="image/jpeg")

    def _atoms(self, place: int) -> Response:
        """The atom of every pixel, row by row, uint32 little endian."""
        atoms = self.session.desk.regions(self.session.sheet(place)).atoms
        return _packed(atoms.astype("<u4").tobytes())

    def _members(self, place: int) -> Response:
        """Which atoms are in each proposal: rows of bits, the first atom in the highest bit, whole bytes a row."""
        members = self.session.desk.regions(self.session.sheet(place)).members
        return _packed(np.packbits(members, axis=1).tobytes())


def _file(name: str) -> Response:
    content = (files("cim.review") / "page" / name).read_bytes()
    return Response(content, mimetype=KINDS[name.rpartition(".")[2]])


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(value), status, mimetype="application/json")


def _packed(content: bytes) -> Response:
    response = Response(gzip.compress(content, 1), mimetype="application/octet-stream")
    response.headers["Content-Encoding"] = "gzip"
    return response
