"A stand-in of the hub: the part of its HTTP interface that a push and a download use, in memory."
import base64, hashlib, json, re, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKENS = { # token -> account; its name, its organisations and their roles, what the token may do
    "hf_writes": dict(name="me", role="write", orgs=dict(lab="contributor", library="read")),
    "hf_reads": dict(name="me", role="read", orgs={}),
}


def git_hash(content): return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
def is_large(sample): return b"\0" in sample # binary files go to the large-file storage
def no_repository(): return Refusal(404, "Repository not found", "RepoNotFound")


class Refusal(Exception):
    "An error answer: status, message, the hub's error code, and more fields of the answer."
    def __init__(self, status, message, code=None, **more):
        self.status, self.code, self.content = status, code, dict(error=message, **more)


class Repository:
    "Files of one commit, and whether only its owner may read them."
    def __init__(self, private, files=()): self.private, self.files = private, dict(files)
    @property
    def commit(self): return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    def oid(self, path):
        content = self.files.get(path)
        if content is None: return None
        return hashlib.sha256(content).hexdigest() if is_large(content[:512]) else git_hash(content)


class HubStandIn:
    "A running server; `with HubStandIn() as hub` ends it."
    def __init__(self):
        self.repositories, self.large = {}, {} # "user/name" -> Repository, SHA-256 -> content
        self.requests, self.cards = [], []     # "METHOD path", headers of model cards that were checked
        self.failing_commits = 0               # how many commits are to be answered with an error
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), dict(hub=self)))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self
    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    "Answers requests by the first route whose pattern fits."
    protocol_version = "HTTP/1.1"
    repo = r"([\w.-]+/[\w.-]+)"
    routes = [
        ("GET", r"/api/whoami-v2", "whoami"), ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"), ("POST", rf"/api/models/{repo}/preupload/main", "preupload"),
        ("POST", rf"/{repo}\.git/info/lfs/objects/batch", "batch"), ("PUT", r"/large/(\w+)", "upload"),
        ("POST", r"/large/verify", "verify"), ("POST", rf"/api/models/{repo}/commit/main", "commit"),
        ("GET", rf"/api/models/{repo}(?:/revision/\w+)?", "info"),
        ("GET", rf"/api/models/{repo}/tree/\w+(?:/(.+))?", "tree"), ("GET", rf"/{repo}/resolve/\w+/(.+)", "resolve"),
    ]

    def do_GET(self):
        self.hub.requests.append(f"{self.command} {self.path}")
        path, method = unquote(urlsplit(self.path).path), "GET" if self.command == "HEAD" else self.command
        self.content = self.body()
        try:
            for verb, pattern, name in self.routes:
                if verb == method and (match := re.fullmatch(pattern, path)):
                    return self.answer(200, *getattr(self, name)(*match.groups()))
            raise Refusal(404, f"no route for {method} {path}")
        except Refusal as e:
            codes = {"X-Error-Code": e.code} if e.code else {}
            self.answer(e.status, e.content, {"X-Error-Message": e.content["error"]} | codes)
    do_HEAD = do_POST = do_PUT = do_GET

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status, content, headers=None):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {})
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items(): self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(content)

    def log_message(self, *args): pass

    def account(self, needed=True):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token in TOKENS: return TOKENS[token]
        if needed or token: raise Refusal(401, "Invalid credentials in Authorization header")

    def check_write(self, namespace):
        account = self.account()
        writable = {account["name"], *(org for org, role in account["orgs"].items() if role != "read")}
        if account["role"] != "write" or namespace not in writable:
            raise Refusal(403, f"You don't have the rights to write under the namespace {namespace}")

    def readable(self, repo_id):
        account, found = self.account(needed=False), self.hub.repositories.get(repo_id)
        if found and (not found.private or account): return found
        raise no_repository()

    def writable(self, repo_id):
        self.check_write(repo_id.split("/")[0])
        return self.readable(repo_id)

    def whoami(self):
        account = self.account()
        orgs = [dict(type="org", name=name, roleInOrg=role) for name, role in account["orgs"].items()]
        token = dict(displayName="test", role=account["role"])
        return dict(type="user", name=account["name"], orgs=orgs, auth=dict(type="access_token", accessToken=token)),

    def create(self):
        asked = json.loads(self.content)
        repo_id = f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.url}/{repo_id}"
        self.check_write(asked["organization"])
        if repo_id in self.hub.repositories: raise Refusal(409, "You already created this model repo", url=url)
        self.hub.repositories[repo_id] = Repository(asked.get("visibility") == "private")
        return dict(url=url, name=repo_id),

    def validate(self):
        header = json.loads(self.content)["content"].split("---\n")[1]
        try: self.hub.cards.append(yaml.safe_load(header))
        except yaml.YAMLError as e: raise Refusal(400, f"Invalid YAML: {e}") from None
        return dict(errors=[], warnings=[]),

    def preupload(self, repo_id):
        repository, files = self.writable(repo_id), []
        for file in json.loads(self.content)["files"]:
            mode = "lfs" if is_large(base64.b64decode(file["sample"])) else "regular"
            oid = repository.oid(file["path"])
            files.append(dict(path=file["path"], uploadMode=mode, shouldIgnore=False, oid=oid))
        return dict(files=files),

    def batch(self, repo_id):
        self.writable(repo_id)
        objects = []
        for file in json.loads(self.content)["objects"]:
            actions = dict(upload=dict(href=f"{self.hub.url}/large/{file['oid']}"),
                           verify=dict(href=f"{self.hub.url}/large/verify"))
            objects.append(file | (dict() if file["oid"] in self.hub.large else dict(actions=actions)))
        return dict(transfer="basic", objects=objects),

    def upload(self, oid):
        if "Authorization" in self.headers: raise Refusal(400, "the storage must not see the token")
        if hashlib.sha256(self.content).hexdigest() != oid: raise Refusal(400, "another content than announced")
        self.hub.large[oid] = self.content
        return {},

    def verify(self):
        self.account()
        asked = json.loads(self.content)
        if len(self.hub.large.get(asked["oid"], b"")) != asked["size"]: raise Refusal(404, "not uploaded")
        return {},

    def commit(self, repo_id):
        repository = self.writable(repo_id)
        if self.hub.failing_commits:
            self.hub.failing_commits -= 1
            raise Refusal(500, "Internal error")
        header, *operations = map(json.loads, self.content.splitlines())
        assert header["key"] == "header" and header["value"]["summary"]
        for value in (operation["value"] | dict(key=operation["key"]) for operation in operations):
            if value["key"] == "file": repository.files[value["path"]] = base64.b64decode(value["content"])
            elif value["key"] == "deletedFile": del repository.files[value["path"]]
            elif value["key"] == "lfsFile": repository.files[value["path"]] = self.hub.large[value["oid"]]
            else: raise Refusal(400, f"unknown operation {value['key']}")
        url = f"{self.hub.url}/{repo_id}/commit/{repository.commit}"
        return dict(success=True, commitOid=repository.commit, commitUrl=url),

    def info(self, repo_id):
        found = self.readable(repo_id)
        files = [dict(rfilename=path) for path in found.files]
        return dict(id=repo_id, sha=found.commit, private=found.private, tags=[], siblings=files),

    def tree(self, repo_id, folder):
        found = self.readable(repo_id)
        inside = {path: content for path, content in found.files.items() if path.startswith(f"{folder or ''}")}
        if folder and not inside: raise Refusal(404, "Entry not found", "EntryNotFound")
        return [dict(type="file", path=path, size=len(content), oid=git_hash(content))
                for path, content in inside.items()],

    def resolve(self, repo_id, path):
        found = self.readable(repo_id)
        if path not in found.files: raise Refusal(404, "Entry not found", "EntryNotFound")
        return found.files[path], {"X-Repo-Commit": found.commit, "ETag": f'"{found.oid(path)}"'}
