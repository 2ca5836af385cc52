# A Python whose scripts become forks of a process that has imported the large libraries (tests/forks.py): a start takes a
# second in place of four; whatever ends this one kills the fork. Of Ray's own scripts only workers do; all else begins as
# ever, and so do all where no socket of such a process is beside this file. Its first line names the real Python.
import os
import signal
import sys

words = sys.argv[1:]
is_worker = any(word.endswith("/default_worker.py") for word in words[:2])
if is_worker or (words and words[0].endswith(".py") and "/ray/" not in words[0]):
    import json
    import socket

    answer = "socket" if is_worker else "scripts"
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
