"""A process that uses every verb on hostile names while it is watched: run by test_security.py, with a folder as argument.

In the folder are `in` (model, data, benchmark), and empty `out`, `home`, `cwd` and `tmp`. It writes `seen.json`: the paths
opened for writing, the programs started and the addresses looked up.
"""

import json
import os
import sys
from pathlib import Path

ROOT = Path(sys.argv[1])
SEEN = {"written": set(), "started": [], "asked": [], "failed": []}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
STARTS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn")
ASKS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
CHANGES = ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.mkfifo")
PAIRS = ("os.rename", "os.link", "os.symlink", "shutil.move", "shutil.copyfile", "shutil.copytree")


def whole(path, folder):
    """Return a path from the root. folder: the number of the open directory that it is in, -1 for the current one."""
    place = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder > 2 else os.getcwd()
    return os.path.normpath(os.path.join(place, os.fsdecode(path)))


def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, int) or not (flags & WRITES or set(mode or "") & set("wax+")):
            return
        SEEN["written"].add(os.path.abspath(os.fsdecode(path)))
    elif event in CHANGES and not isinstance(arguments[0], int):
        SEEN["written"].add(whole(arguments[0], arguments[-1]))
    elif event in PAIRS:
        SEEN["written"].add(whole(arguments[1], -1))
    elif event in STARTS:
        SEEN["started"].append(repr(arguments)[:300])
    elif event in ASKS:
        # A socket of this machine's own, such as that of a pool of processes, is no network.
        address = arguments[1] if event == "socket.connect" else arguments[0]
        if not isinstance(address, (str, bytes)) or event != "socket.connect":
            SEEN["asked"].append(f"{event} {address!r}")
            raise OSError("this process has no network")


sys.addaudithook(watch)


def run(verb, *words):
    """Run one verb of the command in this process; note it where it does not end well."""
    from plaudit.cli import main

    print(f"--- {verb}", flush=True)
    code = main([verb, *map(str, words)])
    if code:
        SEEN["failed"].append(f"{verb}: {code}")


def train_in_python(names):
    """Train an adapter with evaluation sets of hostile names, and write a card of hostile facts."""
    from plaudit import RewardConfig, RewardTrainer
    from plaudit.loading import load_splits

    rows = load_splits(str(ROOT / "in" / "pairs.jsonl"))["train"]
    rows = rows.select_columns(["prompt", "chosen", "rejected"])
    config = RewardConfig(
        output_dir=str(ROOT / "out" / "adapter"),
        run_name=names["run"],
        hub_token=names["hub_token"],
        model_init_kwargs={"token": names["init_token"]},
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        use_cpu=True,
    )
    print(config, repr(config), config.to_json_string())
    sets = {names["set"]: rows.select(range(4)), names["html"]: rows.select(range(4, 8))}
    trainer = RewardTrainer(names["model"], config, train_dataset=rows, eval_dataset=sets, peft_config={"r": 2})
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card(
        model_name=names["card"], dataset_name=names["html"], tags=[names["card"]], license=names["card"]
    )


def main():
    names = json.loads((ROOT / "in" / "names.json").read_text(encoding="utf-8"))
    out, given = ROOT / "out", ROOT / "in"
    pairs, model = given / "pairs.jsonl", names["model"]
    small = ("--per_device_train_batch_size", 2, "--use_cpu", "--max_length", 64)
    options = ("--model_name_or_path", model, "--dataset_name", pairs, "--test_split_size", 0.25, *small)
    secret = ("--hub_token", names["hub_token"], "--model_init_kwargs", json.dumps({"token": names["init_token"]}))
    run(
        "train",
        *options,
        *secret,
        "--max_steps",
        2,
        "--save_steps",
        1,
        "--run_name",
        names["run"],
        "--output_dir",
        out / "whole",
    )
    train_in_python(names)
    run("merge", out / "adapter", "--output_dir", out / "merged")
    run("verify", out / "merged")
    run("score", "--model", out / "whole", "--data", pairs, "--output", out / "scored.jsonl")
    run("score", "--model", out / "whole", "--data", pairs, "--output", out / "scored.parquet")
    for place in ("one", "two"):
        source = f"{names['benchmark']}={given / 'benchmark.jsonl'}"
        run(
            "evaluate",
            "--model",
            out / "whole",
            "--benchmark",
            source,
            "--output_dir",
            out / place,
            "--num_resamples",
            100,
        )
    run("compare", out / "one", out / "two", "--output_dir", out / "compared", "--num_resamples", 100)
    run("audit", pairs, "--output", out / "whole", "--tokenizer", model)
    run("report", out / "whole")
    run("doctor", *options, "--output_dir", out / "whole")
    (ROOT / "seen.json").write_text(json.dumps({**SEEN, "written": sorted(SEEN["written"])}), encoding="utf-8")


if __name__ == "__main__":
    main()
