"""Capacity planning: the number of replicas for a request rate and a p99 latency, and the cost of a million predictions.

python benchmarks/simulate.py measure                            measure the service times of one worker (results/service_times.json)
python benchmarks/simulate.py plan --rate 1000 --p99-ms 50       compute replicas and cost from these service times
python benchmarks/simulate.py compare                            compare formula and simulation for these service times
python benchmarks/simulate.py check                              compare formula, simulation and three real replicas on this machine

The model: requests arrive at random (Poisson), nginx sends each client to one replica by a hash of its address, and a worker serves one
request after the other. Each worker is therefore an M/G/1 queue. Its mean waiting time follows from the Pollaczek-Khinchine formula; the
tail is assumed to be exponential, as in heavy traffic. The simulation (SimPy) draws from the measured service times and also models replicas
that share cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import numpy as np
import simpy

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from support.pictures import encoded, noise  # noqa: E402

RESULTS = ROOT / "benchmarks/results/service_times.json"
PAYLOADS = {"png32": encoded(noise(32, 32), "PNG"), "jpeg512": encoded(noise(512, 512), "JPEG")}
REPLICAS = 3
UTILISATIONS = (0.1, 0.2, 0.4, 0.6, 0.8)


# ---- measuring ----
@contextmanager
def replica(port: int, folder: str) -> Iterator[int]:
    """Start a replica with one worker and yield its process id. It has no cache, because all requests send the same image."""
    variables = {"CIFAR_CACHE_IMAGES": "0", "CIFAR_ACCESS_LOG": "false", "CIFAR_UPLOADS": folder}
    command = [sys.executable, "-m", "cifar", "serve", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/readyz").status_code == httpx2.codes.OK:
                    break
            except httpx2.TransportError:
                pass
            time.sleep(0.2)
        else:
            sys.exit(f"simulate: the replica on port {port} was not ready within two minutes")
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def message(payload: bytes) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


class ConnectionPool:
    """Keep-alive connections to one replica. A client library would take more time than the server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.free: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: bytes) -> bool:
        while self.free and self.free[0][0] < time.monotonic() - 2:  # the server closes them after five seconds
            self.free.pop(0)[2].close()
        idle = self.free.pop()[1:] if self.free else None
        reader, writer = idle or await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        self.free.append((time.monotonic(), reader, writer))
        return head.startswith(b"HTTP/1.1 200")


async def measure_sequentially(port: int, payload: bytes, count: int, clock: int = time.CLOCK_MONOTONIC) -> list[float]:
    """Send requests one after the other and return the seconds of each by the given clock, without the warm-up requests."""
    pool, seconds = ConnectionPool(port), []
    for _ in range(count + 50):
        start = time.clock_gettime(clock)
        if not await pool.ask(message(payload)):
            sys.exit("simulate: a single request was refused")
        seconds.append(time.clock_gettime(clock) - start)
    return seconds[50:]


async def send_poisson(ports: list[int], payload: bytes, rate: float, seconds: float) -> tuple[list[float], int]:
    """Send requests in an open loop; return the seconds from each due time to the response, and the number of refused requests."""
    pools, latencies, tasks = [ConnectionPool(port) for port in ports], [], []
    request, generator = message(payload), random.Random(1)  # noqa: S311 - the same load in every run
    start = due = time.perf_counter()

    async def ask(pool: ConnectionPool, due: float) -> None:
        if await pool.ask(request):
            latencies.append(time.perf_counter() - due)

    while due < start + seconds:
        due += generator.expovariate(rate)
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(ask(generator.choice(pools), due)))
    await asyncio.gather(*tasks)
    return latencies, len(tasks) - len(latencies)


# ---- the model ----
def simulate(service: np.ndarray, rate: float, replicas: int, cores: int, count: int = 40_000) -> np.ndarray:
    """Simulate `count` requests to replicas with one worker each that share `cores`; return the seconds of each request."""
    environment, generator, latencies = simpy.Environment(), np.random.default_rng(2), []
    queues = [simpy.Resource(environment) for _ in range(replicas)]
    processors = simpy.Resource(environment, capacity=cores)

    def request(queue: simpy.Resource, seconds: float):
        arrival = environment.now
        with queue.request() as turn:
            yield turn
            with processors.request() as processor:
                yield processor
                yield environment.timeout(seconds)
        latencies.append(environment.now - arrival)

    def arrivals():
        for gap, seconds in zip(generator.exponential(1 / rate, count), generator.choice(service, count), strict=True):
            yield environment.timeout(gap)
            environment.process(request(queues[generator.integers(replicas)], seconds))

    environment.process(arrivals())
    environment.run()
    return np.array(latencies[count // 10 :])


def formula(service: np.ndarray, rate: float, replicas: int) -> tuple[float, float]:
    """Return the mean and the 99th percentile of a request's seconds, for workers with one core each."""
    busy = rate / replicas * service.mean()
    if busy >= 1:
        return math.inf, math.inf
    wait = rate / replicas * (service**2).mean() / (2 * (1 - busy))  # Pollaczek-Khinchine
    generator = np.random.default_rng(3)
    waits = np.where(generator.random(100_000) < busy, generator.exponential(wait / busy, 100_000), 0)
    return service.mean() + wait, float(np.quantile(waits + generator.choice(service, 100_000), 0.99))


def plan(service: np.ndarray, rate: float, p99_seconds: float) -> int:
    """Return the smallest number of workers, with one core each, that keep the 99th percentile; 0 if no number does."""
    if np.quantile(service, 0.99) > p99_seconds:
        return 0
    low = high = max(1, math.ceil(rate * service.mean()))
    while formula(service, rate, high)[1] > p99_seconds:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if formula(service, rate, middle)[1] <= p99_seconds else (middle, high)
    return high


# ---- commands ----
def measure(arguments: argparse.Namespace) -> None:
    """Measure the processor time of the replica, which other programs on a busy machine hardly change."""
    with tempfile.TemporaryDirectory() as folder, replica(arguments.port, folder) as pid:
        clock = (~pid << 3) | 2  # Linux: the processor time of another process
        rows = {
            name: asyncio.run(measure_sequentially(arguments.port, payload, arguments.count, clock))
            for name, payload in PAYLOADS.items()
        }
    RESULTS.write_text(json.dumps({name: [round(x, 6) for x in row] for name, row in rows.items()}) + "\n")
    for name, row in rows.items():
        mean, deviation = np.mean(row), np.std(row)
        p50, p99 = np.quantile(row, [0.5, 0.99]) * 1e3
        print(
            f"{name}: n={len(row)} mean {mean * 1e3:.2f} ms, p50 {p50:.2f}, p99 {p99:.2f}, variation {deviation / mean:.2f}"
        )


def show_plan(arguments: argparse.Namespace) -> None:
    for name, row in json.loads(RESULTS.read_text()).items():
        service = np.array(row)
        workers = plan(service, arguments.rate, arguments.p99_ms / 1e3)
        if not workers:
            print(f"{name}: impossible, because the service time alone has a higher p99")
            continue
        busy = arguments.rate / workers * service.mean()
        simulated = np.quantile(simulate(service, arguments.rate, workers, workers), 0.99) * 1e3
        cost = workers * arguments.price / (arguments.rate * 3600) * 1e6
        print(
            f"{name}: {workers} workers, {busy:.0%} busy, simulated p99 {simulated:.1f} ms, cost per million {cost:.4f}"
        )


def compare(_: argparse.Namespace) -> None:
    print(
        "| image | busy | mean ms: simulation | formula | error | p99 ms: simulation | formula | error |\n"
        + "|---" * 8
        + "|"
    )
    for name, row in json.loads(RESULTS.read_text()).items():
        service = np.array(row)
        for busy in UTILISATIONS:
            rate = busy * REPLICAS / service.mean()
            simulated = simulate(service, rate, REPLICAS, REPLICAS)
            pairs = zip((simulated.mean(), np.quantile(simulated, 0.99)), formula(service, rate, REPLICAS), strict=True)
            cells = [f"{one * 1e3:.2f} | {other * 1e3:.2f} | {other / one - 1:+.0%}" for one, other in pairs]
            print(f"| {name} | {busy:.0%} | {' | '.join(cells)} |")


def check(arguments: argparse.Namespace) -> None:
    """Measure the service times now, on a replica that runs beside the others, so that they fit the current state of the machine."""
    ports = [arguments.port + i for i in range(REPLICAS)]
    payload = PAYLOADS[arguments.payload]
    cores = os.cpu_count() or 1
    print(
        "| busy | requests/s | n | refused | mean ms: run | simulation | formula | p99 ms: run | simulation | formula |\n"
        + "|---" * 10
        + "|"
    )
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(replica(port, stack.enter_context(tempfile.TemporaryDirectory())))
        service = np.array(asyncio.run(measure_sequentially(ports[0], payload, 1000)))
        for busy in UTILISATIONS:
            rate = busy * min(cores, REPLICAS) / service.mean()
            latencies, refused = asyncio.run(send_poisson(ports, payload, rate, arguments.seconds))
            run = np.array(latencies)
            simulated = simulate(service, rate, REPLICAS, cores)
            mean, tail = formula(service, rate, REPLICAS)
            means = " | ".join(f"{x * 1e3:.2f}" for x in (run.mean(), simulated.mean(), mean))
            tails = " | ".join(f"{x * 1e3:.2f}" for x in (np.quantile(run, 0.99), np.quantile(simulated, 0.99), tail))
            print(f"| {busy:.0%} | {rate:.0f} | {len(run)} | {refused} | {means} | {tails} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=27861, help="first port of the replicas")
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--count", type=int, default=2000, help="requests per image")
    measuring.set_defaults(run=measure)
    planning = commands.add_parser("plan")
    planning.add_argument("--rate", type=float, required=True, help="requests per second")
    planning.add_argument("--p99-ms", type=float, default=50)
    planning.add_argument(
        "--price", type=float, default=0.04, help="price of one core per hour; the default is an assumption"
    )
    planning.set_defaults(run=show_plan)
    commands.add_parser("compare").set_defaults(run=compare)
    checking = commands.add_parser("check")
    checking.add_argument("--payload", choices=PAYLOADS, default="png32")
    checking.add_argument("--seconds", type=float, default=8, help="length of each run")
    checking.set_defaults(run=check)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
