#!/usr/bin/python3
"""A stand-in for an AI service: answers HTTP as the service of that name would to a first question.

ollama-stand-in   OLLAMA_HOST as the real one reads it (default 127.0.0.1:11434)
ray-stand-in      port 8265 on every address
web-stand-in      port 443 on every address (plain HTTP: what matters is who can connect)
"""
import http.server
import json
import os
import socket
import sys

NAME = os.path.basename(sys.argv[0])


def ollama_address():
    text = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'")
    text = text.split("://", 1)[-1].split("/", 1)[0]
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.lstrip(":")
    elif text.count(":") == 1:
        host, port = text.split(":")
    else:
        host, port = text, ""
    return host or "127.0.0.1", int(port or 11434)


ADDRESS = {
    "ollama-stand-in": ollama_address,
    "ray-stand-in": lambda: ("0.0.0.0", 8265),
    "web-stand-in": lambda: ("0.0.0.0", 443),
}[NAME]()

PAGES = {
    "ollama-stand-in": {
        "/": ("text/plain", "Ollama is running"),
        "/api/version": ("application/json", json.dumps({"version": "0.0.0-stand-in"})),
        "/api/tags": ("application/json", json.dumps({"models": []})),
    },
    "ray-stand-in": {
        "/": ("text/html", "<title>Ray Dashboard</title>"),
        "/api/version": ("application/json", json.dumps({"ray_version": "0.0.0-stand-in"})),
    },
    "web-stand-in": {"/": ("text/plain", "web")},
}[NAME]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        page = PAGES.get(self.path)
        body = page[1].encode() if page else b"404 page not found"
        self.send_response(200 if page else 404)
        self.send_header("Content-Type", page[0] if page else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET


class Server(http.server.ThreadingHTTPServer):
    # Go, in which Ollama is written, listens on both families when asked for 0.0.0.0.
    address_family = socket.AF_INET6 if ADDRESS[0] in ("0.0.0.0", "::") or ":" in ADDRESS[0] else socket.AF_INET

    def server_bind(self):
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


host = "::" if ADDRESS[0] == "0.0.0.0" else ADDRESS[0]
Server((host, ADDRESS[1]), Handler).serve_forever()
