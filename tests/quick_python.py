# A Python for Ray. Its workers become forks of a process that has imported the large libraries (tests/forks.py): a start
# takes a second in place of four. All else begins as ever. A copy stands beside the socket of that process; its first line
# names the real Python.
import os
import signal
import sys

words = sys.argv[1:]
if any(word.endswith("/default_worker.py") for word in words[:2]):
    import json
    import socket

    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        server.connect(os.path.join(os.path.dirname(sys.argv[0]), "socket"))  # noqa: PTH118, PTH120 - nothing more is imported
    except OSError:  # it has ended: an ordinary worker, then
        pass
    else:
        os.umask(umask := os.umask(0o077))
        request = [words, os.getcwd(), dict(os.environ), umask, sys.executable]  # noqa: PTH109
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
        os._exit(int(server.recv(100) or -signal.SIGKILL) & 0xFF)
os.execv(sys.executable, [sys.executable, *words])
