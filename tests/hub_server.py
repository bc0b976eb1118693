"""A small Hub on loopback: the endpoints that uploading a model and loading it back use, kept in memory.

It answers what the real client (huggingface_hub over HTTP, transformers' push) sends, so that no test replaces a part
of either. Files that git would not take inline go through the LFS endpoints, whose sums it checks.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

LARGE = (".safetensors", ".bin", ".pt", ".pth")
OWNER = "someone"  # whom a token belongs to: the owner of a repository named without one


@dataclass
class Hub:
    """repos: what the last commit of each holds. fail: broken requests, as {"commit OWNER/NAME": 500} (0: hang up)."""

    url: str = ""
    token: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    fail: dict[str, int] = field(default_factory=dict)

    def environment(self, home):
        """What a process needs to take this for the Hub, and nothing else: no other address, no stored token."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(home),
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def hub_server(token):
    hub = Hub(token=token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub):
    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    # method, path without the query -> which function answers; its groups are the arguments
    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(.+)/preupload/[^/]+", "preupload"),
        ("POST", r"/(.+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(\w+)", "store"),
        ("POST", r"/api/models/(.+)/commit/[^/]+", "commit"),
        ("GET", r"/api/models/([^/]+/[^/]+)/tree/[^/]+", "tree"),
        ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", "info"),
        ("GET", r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", "resolve"),
    )

    def answer(self):
        path = self.path.partition("?")[0]
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if verb == method and match:
                self.hub.seen.append(f"{self.command} {name}")
                return self.run(name, match.groups())
        return self.send(404, {"error": f"this Hub has no {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def run(self, name, groups):
        status = self.hub.fail.get(" ".join((name, *groups[:1])))
        if status is not None:
            if status == 0:
                self.close_connection = True
                return self.connection.shutdown(2)
            return self.send(status, {"error": "this Hub is having a bad day"})
        # the address for a large file is given to who may write, and asks no more
        if name not in ("info", "tree", "resolve", "store") and not self.authorized():
            return self.send(401, {"error": "Invalid username or password."})
        return getattr(self, name)(*groups)

    def authorized(self):
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def log_message(self, *arguments):
        """Quiet: the test reads `seen`."""

    def send(self, status, content, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # ---- writing -----------------------------------------------------------------------------------------------

    def create(self):
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        status = 409 if name in self.hub.repos else 200
        self.hub.repos.setdefault(name, {})
        self.send(status, {"url": f"{self.hub.url}/{name}", "name": name})

    def validate(self):
        head = json.loads(self.body)["content"].split("---\n")[1]
        problems = [] if isinstance(yaml.safe_load(head), dict) else [{"message": "the metadata is not a mapping"}]
        self.send(400 if problems else 200, {"errors": problems, "warnings": []})

    def preupload(self, repository):
        files = json.loads(self.body)["files"]
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular", "shouldIgnore": False}
            for f in files
        ]
        self.send(200, {"files": modes})

    def batch(self, repository):
        wanted = json.loads(self.body)["objects"]
        objects = [{**o, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}}} for o in wanted]
        self.send(200, {"transfer": "basic", "objects": objects})

    def store(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.send(400, {"error": "the bytes are not those of the sum"})
        self.hub.blobs[oid] = self.body
        return self.send(200, {})

    def commit(self, repository):
        files = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            else:
                self.hub.commits.append(value["summary"])
        self.hub.repos[repository] |= files
        sha = self.sha(repository)
        self.send(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repository}/commit/{sha}"})

    # ---- reading -----------------------------------------------------------------------------------------------

    def sha(self, repository):
        return hashlib.sha1(repr(sorted(self.hub.repos[repository].items())).encode()).hexdigest()

    def missing(self, repository):
        if repository in self.hub.repos:
            return False
        self.send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return True

    def info(self, repository):
        if not self.missing(repository):
            siblings = [{"rfilename": path} for path in self.hub.repos[repository]]
            entry = {"_id": "0", "id": repository, "modelId": repository, "private": False, "tags": [], "downloads": 0}
            self.send(200, {**entry, "sha": self.sha(repository), "siblings": siblings})

    def tree(self, repository):
        if not self.missing(repository):
            files = self.hub.repos[repository].items()
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files
            ]
            self.send(200, entries)

    def resolve(self, repository, path):
        if self.missing(repository):
            return None
        content = self.hub.repos[repository].get(path)
        commit = {"X_Repo_Commit": self.sha(repository)}
        if content is None:
            return self.send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", **commit)
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.send(200, content, ETag=etag, Content_Type="application/octet-stream", **commit)
