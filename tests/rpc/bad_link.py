"""A proxy that can stop forwarding without closing anything: `python bad_link.py HOST:PORT`."""

from __future__ import annotations

import os
import selectors
import socket
import sys


def main(target: str) -> None:
    host, _, port = target.rpartition(":")
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"link at 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    others: dict[socket.socket, socket.socket] = {}
    clients = set()
    stopped = False
    left: int | None = None
    while True:
        for key, _ in selector.select():
            found = key.fileobj
            if found is sys.stdin:
                words = os.read(0, 100).split()
                if not words:
                    return
                if words[0] == b"after":
                    left = int(words[1])
                    print("armed", flush=True)
                else:
                    stopped = True
                    print("stopped", flush=True)
            elif found is listener:
                client, _address = listener.accept()
                if stopped:
                    others[client] = client  # kept open; nobody will ever answer it
                    continue
                board = socket.create_connection((host, int(port)))
                others[client], others[board] = board, client
                clients.add(client)
                selector.register(client, selectors.EVENT_READ)
                selector.register(board, selectors.EVENT_READ)
            elif stopped:
                selector.unregister(found)
            else:
                assert isinstance(found, socket.socket)
                try:
                    data = found.recv(1 << 16)
                    if found in clients and left is not None:
                        left -= len(data)
                        if left <= 0:
                            stopped = True
                            print("stopped", flush=True)
                            continue
                    if data:
                        others[found].sendall(data)
                except OSError:
                    data = b""
                if not data:
                    for one in (found, others[found]):
                        try:
                            selector.unregister(one)
                        except KeyError:
                            continue
                        one.close()


if __name__ == "__main__":
    main(sys.argv[1])
