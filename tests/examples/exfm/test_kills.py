import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_fifty_kills_change_nothing(tmp_path):
    """Real processes, SIGKILL, at random moments of scoring, training the teacher, training students and writing: the
    same rows, predictions and weights, to the bit, and every example once."""
    command = [sys.executable, "-m", "tests.examples.exfm.killed", str(tmp_path), "50"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= 50 and found["runs"] >= 1
    assert found["differing"] == 0 and found["every_example_once"]
