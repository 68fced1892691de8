"""How long `nanokimi --help` and `import nanokimi` take, in fresh processes: the median of several, in turns.

    python benchmarks/startup.py [--rounds 10]

Also the bare interpreter, which is part of both; and whether importing nanokimi imports torch (it should not).
"""

from __future__ import annotations

import subprocess
import sys
import time

from common import OtherLoad, finish, options_parser, shown, spread, table

COMMANDS = {
    "nanokimi --help": ["-m", "nanokimi", "--help"],
    "import nanokimi": ["-c", "import nanokimi"],
    "python": ["-c", "pass"],
}


def run(arguments: list[str]) -> float:
    """Seconds of one process, from start to end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Run the commands in turns."""
    options = options_parser(__doc__, rounds=10).parse_args()
    if options.smoke:
        options.rounds = 2
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with OtherLoad() as load:
        for number in range(-1, options.rounds):  # the first brings the files into memory
            for name in COMMANDS if number % 2 else reversed(COMMANDS):
                once = run(COMMANDS[name])
                if number >= 0:
                    seconds[name].append(once)
    asked = "import sys, nanokimi; sys.exit('torch' in sys.modules)"
    torch_imported = subprocess.run([sys.executable, "-c", asked]).returncode != 0
    found = {name: spread(times) for name, times in seconds.items()}
    print(table(["command", "seconds"], [[name, shown(times, ".3f")] for name, times in found.items()]))
    print(f"import nanokimi {'imports' if torch_imported else 'does not import'} torch")
    record = {"benchmark": "startup", "seconds": found, "torch_imported": torch_imported}
    finish(options, {**record, "other_cores": load.cores})


if __name__ == "__main__":
    main()
