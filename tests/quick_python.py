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

    answer = "socket"
    try:
        while not answer.lstrip("-").isdigit():  # the name of another
            server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            server.connect(os.path.join(os.path.dirname(sys.argv[0]), answer))  # noqa: PTH118, PTH120 - nothing more is imported
            os.umask(umask := os.umask(0o077))
            request = [words, os.getcwd(), dict(os.environ), umask, sys.executable]  # noqa: PTH109
            socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
            answer = server.recv(100).decode() or str(-signal.SIGKILL)
    except OSError:  # it has ended: an ordinary worker, then
        pass
    else:
        os._exit(int(answer) & 0xFF)
os.execv(sys.executable, [sys.executable, *words])
