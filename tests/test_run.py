import json
import os
import socket
import subprocess
import sys
import time
import urllib.request


def test_a_real_tensorboard_server_shows_the_four_curves(trained):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", ".", "--port", str(port), "--load_fast", "false"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)

    def get(path):
        return json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/scalars/{path}"))

    try:
        tags = {}
        for _ in range(240):
            try:
                tags = get("tags").get("r", {})
            except OSError:
                assert server.poll() is None, "the server ended"
            if tags:
                break
            time.sleep(0.25)
        assert {"Train/Loss", "Train/Accuracy", "Validation/Loss", "Validation/Accuracy"} <= tags.keys()
        points = get("scalars?run=r&tag=Validation/Accuracy")
        assert [step for _, step, _ in points] == [1, 2]
    finally:
        server.kill()
        server.wait()
