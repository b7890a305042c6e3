"""A suite on a real SLURM: a controller and two nodes on this machine, one of which is killed. `make test-cluster`.

It needs slurmctld, slurmd, munged and the client commands (Debian: slurmctld, slurmd, munge, slurm-client), and no more
rights than those of the user: the daemons are this user's own.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from launch_suite import write_suite

from ssl_bench.commands.bench import bench
from ssl_bench.launch import slurm
from ssl_bench.launch.slurm import Cluster
from ssl_bench.results.rows.predictions import read_predictions
from ssl_bench.results.rows.row import read_rows

pytestmark = pytest.mark.cluster
NODES = ("n1", "n2")
MARK = "SSL_BENCH_TEST_NODE"  # in the environment of what a node's daemon starts for itself
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=test Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a cluster that runs, and which sbatch and squeue talk to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)  # or munged refuses it
    (folder / "state").mkdir()
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    conf = CONF.format(host=socket.gethostname().split(".")[0], user=getpass.getuser(), ports=ports, folder=folder)
    (folder / "slurm.conf").write_text(conf)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
    subprocess.run(["munged", *munge], check=True)
    try:
        subprocess.run(["slurmctld"], check=True)
        for node in NODES:
            subprocess.run(["slurmd", "-N", node], check=True, env={**os.environ, MARK: node})
        until = time.monotonic() + 60
        while said("sinfo", "--noheader", "--format=%D %T") != "2 idle":
            assert time.monotonic() < until, (folder / "slurmctld.log").read_text()[-3000:]
            time.sleep(0.5)
        yield folder
    finally:
        subprocess.run(["scancel", "--me"], check=False)
        for node in NODES:
            kill_node(folder, node)
        for name in ("slurmctld.pid", "munge.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((folder / name).read_text()), signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def kill_node(folder: Path, node: str) -> int:
    """End the daemon of a node with all that it has started, as a power cut does: how many processes that were."""
    marks = {f"{key}={node}".encode() for key in (MARK, "SLURMD_NODENAME")}
    conf, killed, last = f"SLURM_CONF={folder}/slurm.conf".encode(), 0, -1
    while killed != last:  # until nothing new has been started meanwhile
        last = killed
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = set((process / "environ").read_bytes().split(b"\0"))
                if conf in variables and marks & variables:
                    os.kill(int(process.name), signal.SIGKILL)
                    killed += 1
        time.sleep(0.2)
    return killed


def test_a_suite_loses_a_node_and_finishes(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "POLL", 1.0)
    write_suite(tmp_path)
    suite = yaml.safe_load((tmp_path / "toy.yaml").read_text())
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({**suite, "methods": ["mae"]}))
    assert bench("toy.yaml", jobs=1, out="here", logger=("csv",), show=lambda _: None) == []
    shutil.rmtree("runs")
    killed: list[int] = []

    def power_cut() -> None:
        """When a job of the first node has started its Python."""
        until = time.monotonic() + 300
        while time.monotonic() < until:
            job = said("squeue", "--nodelist=n1", "--states=R", "--noheader", "--format=%A") or "none"
            log = tmp_path / "runs" / "slurm" / f"{job}_0_log.out"
            if log.exists() and "Loading pickle" in log.read_text():
                break
            time.sleep(0.1)
        killed.append(kill_node(cluster, "n1"))

    cut = threading.Thread(target=power_cut)
    cut.start()
    failed = bench(
        "toy.yaml", launcher="slurm", cluster=Cluster("test", minutes=10), logger=("csv",), show=lambda _: None
    )
    cut.join()
    assert failed == []
    assert killed[0] >= 4  # the daemon and its helper, the job's shell and its Python at the least
    one, two = ({row["id"]: row for row in read_rows(folder)} for folder in ("here", "results/toy"))
    assert one.keys() == two.keys() and len(one) == 4
    for key, row in one.items():
        assert (row["metrics"], row["weights"]) == (two[key]["metrics"], two[key]["weights"])
        assert (read_predictions(row) == read_predictions(two[key])).all()
    assert (tmp_path / "results" / "toy" / "LEADERBOARD.md").exists()
    assert "4 jobs queued" in capsys.readouterr().err
    assert not list((tmp_path / "runs" / "evaluations").iterdir())
    assert said("sinfo", "--noheader", "--nodes=n1", "--format=%T").startswith("down")
