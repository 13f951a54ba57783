"""What W&B was told, for tests: a server on loopback that keeps what arrives, and readers of it and of offline files.

The server is as much of W&B's as the real client needs to start, log, resume and sync.
"""

import base64
import gzip
import json
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.conftest import rows

Row = tuple[int, str, float]
"""agent step, tag and value: one point of a curve"""
KEY = "0" * 40
"""the one that the server takes"""
CREDENTIALS = "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()
PROJECT = "atari-prune"
USER = {"id": "u", "username": "u", "entity": "ent", "flags": "{}", "email": "a@b", "teams": {"edges": []}}
SERVER = {"features": [], "cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": None}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def answer(self, value: dict, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer({})

    def do_PUT(self):
        self.body()
        self.answer({})

    def do_POST(self):
        data = self.body()
        if "Authorization" in self.headers and self.headers["Authorization"] != CREDENTIALS:
            return self.answer({"errors": [{"message": "permission denied"}]}, status=401)
        stream = re.match(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        if stream and self.server.refuses:
            self.answer({"error": "bad request"}, status=400)
        elif stream:
            run = self.run_of(stream[1])
            for name, part in (json.loads(data).get("files") or {}).items():
                lines, offset = run["files"].setdefault(name, []), part.get("offset", 0)
                lines[offset : offset + len(part["content"])] = part["content"]
            self.answer({"exitcode": None, "limits": {}})
        elif self.path.startswith("/graphql"):
            call = json.loads(data)
            self.answer({"data": self.graphql(call["query"], call.get("variables") or {})})
        else:
            self.answer({})

    def run_of(self, name: str) -> dict:
        return self.server.runs.setdefault(name, {"config": None, "files": {}, "starts": 0})

    def graphql(self, query: str, variables: dict) -> dict:
        operation = re.search(r"(query|mutation)\s+(\w+)", query)[2]
        if operation in ("Viewer", "GetDefaultEntity"):
            return {"viewer": USER | {"defaultEntity": {"name": "ent"}}}
        if operation in ("ProjectViews", "View", "ProjectInternalId", "GetProjects", "SpecificReport") or "upsertView" in query:
            return self.saved_views(operation, variables)
        if operation == "ServerFeaturesQuery" or "serverInfo" in query:
            return {"serverInfo": SERVER, "viewer": USER}
        if operation == "RunResumeStatus":
            model = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "ent"}, "bucket": None}
            if variables["name"] in self.server.runs:
                run, lines = self.server.runs[variables["name"]], {}
                for key, name in (("history", "wandb-history.jsonl"), ("events", "wandb-events.jsonl"), ("log", "output.log")):
                    lines[f"{key}LineCount"] = len(run["files"].get(name, []))
                    lines[f"{key}Tail"] = json.dumps(run["files"].get(name, [])[-1:])
                summary = (run["files"].get("wandb-summary.json") or ["{}"])[-1]
                named = {"id": variables["name"], "name": variables["name"], "projectID": 1, "sweepName": None, "tags": []}
                model["bucket"] = (
                    named | lines | {"summaryMetrics": summary, "config": run["config"] or "{}", "wandbConfig": "{}"}
                )
            return {"model": model}
        if operation == "UpsertBucket":
            name = variables["name"]
            run = self.run_of(name)
            run["starts"] += 1
            run |= {key: value for key, value in variables.items() if value is not None}
            project = {"id": "p", "name": variables.get("project") or "p", "entity": {"id": "e", "name": "ent"}}
            bucket = {"id": name, "name": name, "displayName": run.get("displayName"), "description": "", "sweepName": None}
            bucket |= {"config": run["config"], "project": project}
            bucket["historyLineCount"] = len(run["files"].get("wandb-history.jsonl", []))
            return {"upsertBucket": {"bucket": bucket, "inserted": run["starts"] == 1}}
        if operation == "ArtifactType":
            return {"project": None}
        if operation == "CreateArtifact":  # as if it had the files already
            sequence = {"id": "s", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
        if operation == "CreateRunFiles":
            address = f"http://127.0.0.1:{self.server.server_port}/up"
            return {
                "createRunFiles": {
                    "runID": "id",
                    "uploadHeaders": [],
                    "files": [{"name": name, "uploadUrl": address} for name in variables["files"]],
                }
            }
        return {}

    def saved_views(self, operation: str, variables: dict) -> dict:
        """Views and reports of the entity `ent`, which has one project."""
        views, project = self.server.views, {"id": "p", "name": PROJECT, "entityName": "ent", "internalId": "i"}
        if operation == "SpecificReport":
            return {"view": views.get(variables["reportId"])}
        if operation == "GetProjects":
            node = project | {"createdAt": "", "isBenchmark": False, "user": None}
            return {"models": {"edges": [{"node": node, "cursor": "1"}], "pageInfo": {"endCursor": "1", "hasNextPage": False}}}
        name = variables.get("projectName") or variables.get("project") or variables.get("name")
        if (variables.get("entityName") or variables.get("entity"), name) != ("ent", PROJECT):
            return {"project": None, "upsertView": None}
        if operation.lower().startswith("upsertview"):
            number = variables.get("id") or base64.b64encode(f"View:{len(views)}".encode()).decode()
            inserted = number not in views
            views[number] = variables | {"id": number, "project": project, "updatedAt": "2026-11-28T00:00:00"}
            return {"upsertView": {"view": views[number], "inserted": inserted}}
        wanted, called = variables.get("viewType"), variables.get("viewName")
        found = [view for view in views.values() if view["type"] == wanted and called in (None, view["name"])]
        edges = [{"node": view, "cursor": view["id"]} for view in found]
        return {"project": project | {"allViews": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that was killed hangs up in the middle: that is what the tests do."""


@contextmanager
def serving(refuses: bool = False):
    """The server, running; server.runs and server.views are what it was told, server.server_port its port.

    With `refuses` it takes no rows.
    """
    server = Server(("127.0.0.1", 0), Handler)
    server.runs, server.views, server.refuses = {}, {}, refuses
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def points(history: list[dict]) -> list[Row]:
    """The points of a W&B history, in its order: without clocks, tables and videos."""
    tags = [(row, tag) for row in history for tag in row if "/" in tag and tag != "charts/SPS"]
    return [(row["global_step"], tag, float(row[tag])) for row, tag in tags]


def on_server(server: Server) -> list[Row]:
    """The points of the one run that the server knows, in the order in which they came."""
    (run,) = server.runs.values()
    return points([json.loads(line) for line in run["files"].get("wandb-history.jsonl", [])])


def records(folder: Path) -> list[dict]:
    """What the files of a run folder's W&B runs hold, the oldest first, by `wandb leet inspect`."""
    found = []
    for file in sorted(folder.glob("wandb/*run-*/*.wandb")):
        words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        found += subprocess.run(words, capture_output=True, text=True, timeout=300).stdout.splitlines()
    return [json.loads(line) for line in found]


def in_files(folder: Path) -> list[Row]:
    """The points in a run folder's W&B files, in their order."""
    return points([record["history"]["item"] for record in records(folder) if record["type"] == "history"])


def in_curves(folder: Path) -> list[Row]:
    """The points in curves.csv."""
    return [(int(row["global_step"]), row["tag"], float(row["value"])) for row in rows(folder / "curves.csv")]
