"""How long `plaudit --help` and `import plaudit` take: median and range over several fresh processes."""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import plaudit": [sys.executable, "-c", "import plaudit"],
    "plaudit --help": [sys.executable, "-m", "plaudit", "--help"],
}


def seconds_of(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(num_runs: int = 9) -> None:
    for name, command in COMMANDS.items():
        seconds_of(command)  # the first run reads from disk and writes bytecode
        seconds = [seconds_of(command) for _ in range(num_runs)]
        print(
            f"{name:<16}{statistics.median(seconds):.3f} s  (range {min(seconds):.3f} to {max(seconds):.3f}, {num_runs} runs)"
        )


if __name__ == "__main__":
    main()
