#!/usr/bin/python3
"""A stand-in, by name, for servers that need a GPU or gigabytes: it listens where its arguments say, as they do."""

import http.server
import re
import sys

FLAG = re.compile(r"--(?:host|listen|ip|ServerApp\.ip|dashboard-host)(?:=(.*))?$")
address, port = "0.0.0.0", 0
words = sys.argv[1:]
for index, word in enumerate(words):
    found = FLAG.match(word)
    if found:
        address = found.group(1) or words[index + 1]
    if word == "--stand-in-port":
        port = int(words[index + 1])
http.server.HTTPServer((address, port), http.server.SimpleHTTPRequestHandler).serve_forever()
