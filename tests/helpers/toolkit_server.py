"""Commands of the toolkit without the seconds that loading its libraries takes.

Run as a program it loads them once and then forks for each request, with the caller's folder,
environment, words and files; `ask` is the other side, for a program that stands for `toolkit`. Of
the standard library alone, since it is also read without any other packages.
"""

import json
import os
import signal
import socket
import sys


def ask(path):
    """Have this process's command line run by the server at a socket, and end with its code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        wanted = {"words": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}  # noqa: PTH109
        socket.send_fds(connection, [json.dumps(wanted).encode()], [0, 1, 2])
        code = connection.recv(8)
    sys.exit(int(code) if code else 70)


def serve(path):
    """Answer requests until killed."""
    import datasets  # noqa: F401
    import optuna  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import toolkit.cli.main
    import toolkit.pipeline.merge_stage  # noqa: F401

    torch.set_num_threads(1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if os.fork() == 0:
            listener.close()
            code = 70
            try:
                code = answer(json.loads(message), files)
            finally:
                connection.sendall(str(code).encode())
                os._exit(0)
        connection.close()
        for file in files:
            os.close(file)


def answer(wanted, files):
    """Run one command in this process, which ends afterwards."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(wanted["env"])
    os.chdir(wanted["cwd"])
    sys.argv = ["toolkit", *wanted["words"]]
    try:
        from toolkit.cli.entry import main

        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__" and len(sys.argv) == 2 and "SOCKET" not in globals():
    serve(sys.argv[1])
