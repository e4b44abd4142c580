"""Which rank this process is, as torchrun or mlx.launch tell it by the environment; and how ranks are started here."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import Mistake, need

LEADER, SECRET = "MLX_DGEMMA_LEADER", "MLX_DGEMMA_SECRET"
MOST_HERE = 16  # ranks that one machine starts: hardly one has more devices
BEYOND = 1000  # rank 0 is met at the engine's port and so many more


@dataclass(frozen=True)
class Place:
    rank: int
    ranks: int
    backend: str  # that the engine is of
    leader: tuple[str, int]  # where rank 0 is met


def place(environment: Mapping[str, str]) -> Place | None:
    """Return where this process stands; None: it is alone. Mistake where the engine says too little."""
    engines = {"WORLD_SIZE": _torchrun, "MLX_HOSTFILE": _ring, "MLX_IBV_DEVICES": _jaccl, "NCCL_HOST_IP": _nccl}
    engines["OMPI_COMM_WORLD_SIZE"] = _mpi
    engine = next((engines[name] for name in engines if environment.get(name)), None)
    try:
        rank, ranks, backend, address = engine(environment) if engine else (0, 1, "", None)
        if ranks == 1:
            return None
        need(0 <= rank < ranks, f"a rank below {ranks}", f"{rank}")
        if leader := environment.get(LEADER):
            host, _, port = leader.rpartition(":")
            return Place(rank, ranks, backend, (host, int(port)))
        if address is None:
            raise Mistake(f"{ranks} ranks need {LEADER}=HOST:PORT in the environment of each, where rank 0 is met")
        host, port = address[0], address[1] + BEYOND
        return Place(rank, ranks, backend, (host, port if port < 2**16 else port - 2 * BEYOND))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        if isinstance(error, Mistake):
            raise
        raise Mistake(f"the environment of a rank is not as torchrun or mlx.launch make it: {error!r}") from None


def _torchrun(environment: Mapping[str, str]) -> tuple:
    ranks = int(environment["WORLD_SIZE"])
    if ranks == 1:
        return 0, 1, "torch", None
    return int(environment["RANK"]), ranks, "torch", (environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))


def _ring(environment: Mapping[str, str]) -> tuple:
    text = Path(environment["MLX_HOSTFILE"]).read_text().strip()
    if not text:  # mlx.launch's of a single process
        return 0, 1, "mlx", None
    hosts = json.loads(text)
    return int(environment["MLX_RANK"]), len(hosts), "mlx", _address(hosts[0][0])


def _jaccl(environment: Mapping[str, str]) -> tuple:
    devices = json.loads(Path(environment["MLX_IBV_DEVICES"]).read_text())
    return int(environment["MLX_RANK"]), len(devices), "mlx", _address(environment["MLX_JACCL_COORDINATOR"])


def _nccl(environment: Mapping[str, str]) -> tuple:
    address = environment["NCCL_HOST_IP"], int(environment["NCCL_PORT"])
    return int(environment["MLX_RANK"]), int(environment["MLX_WORLD_SIZE"]), "mlx", address


def _mpi(environment: Mapping[str, str]) -> tuple:
    return int(environment["OMPI_COMM_WORLD_RANK"]), int(environment["OMPI_COMM_WORLD_SIZE"]), "mlx", None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def start_here(ranks: int, backend: str) -> list[subprocess.Popen]:
    """Start the other ranks of a model on this machine; this process becomes rank 0 by its environment."""
    need(ranks <= MOST_HERE, f"--tensor-parallel <= {MOST_HERE} on one machine", str(ranks))
    engine, meeting, *ring = free_ports(2 + ranks)
    common = {LEADER: f"127.0.0.1:{meeting}", SECRET: secrets.token_hex(16)}
    if backend == "torch":
        common |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(engine)}
    else:
        file, name = tempfile.mkstemp(prefix="mlx_dgemma-hosts-", suffix=".json")
        with open(file, "w") as hosts:
            json.dump([[f"127.0.0.1:{port}"] for port in ring], hosts)
        common["MLX_HOSTFILE"] = name
    names = ("RANK", "LOCAL_RANK") if backend == "torch" else ("MLX_RANK",)
    started = []
    for rank in reversed(range(ranks)):
        variables = common | dict.fromkeys(names, str(rank))
        if rank == 0:
            os.environ |= variables
        else:  # any command follows where the environment names another rank than 0
            command = [sys.executable, "-m", "mlx_dgemma.generate"]
            null = subprocess.DEVNULL
            started.append(subprocess.Popen(command, env=os.environ | variables, stdin=null, stdout=null))
    return started
