"""What a page says of each result file: one sentence or two, with the conditions."""


def demo(result: dict) -> str:
    machine, clips = result["conditions"], result["after"]["gallery_size"]
    stages = ", ".join(f"{name} {value} s" for name, value in result["seconds"].items())
    random, before, after = (_percent(result[row]["text_to_video_R@1"]) for row in ("random", "before", "after"))
    near = ", ".join(f"{name} {_percent(value)}" for name, value in result["near_miss"].items())
    return (
        f"Stages of `dmae demo`: {stages}. "
        f"Text→video R@1 among {clips} generated clips: {after} after "
        f"training, {before} before, {random} for random scores. Clips that differ in one thing only, told apart "
        f"(50 % is chance): {near}. {machine['device']}, {machine['cores']} cores, torch {machine['torch']}, "
        f"load {machine['load']:.0f}."
    )


def head(results: list[dict]) -> str:
    plain = [case for case in results if not case["conditions"]["captions"]]
    batch = min((case["conditions"]["batch"] for case in plain), key=lambda size: abs(size - 128))  # the recipes'
    cases = [case for case in plain if case["conditions"]["batch"] == batch]  # one or more runs
    names = [row["row"] for row in cases[0]["rows"]]
    ratio = {n: _range([r["ratio"] for case in cases for r in case["rows"] if r["row"] == n]) for n in names}
    said, whole = cases[0]["conditions"], ratio["similarity + NegNCE + TPM"]
    short = [case for case in results if case["conditions"]["captions"] and case["conditions"]["batch"] == batch]
    rows = [row for case in short for row in case["rows"]]
    ends = [_range([row["ratio"] for row in rows if row["row"] == name]) for name in names[1:3]] if rows else []
    captions = f"; with captions of 5 to 20 words {' and '.join(ends)} times" if rows else ""
    return (
        f"Forward and backward of the head at batch {said['batch']}, {said['words']} words, {said['frames']} frames, "
        f"width {said['width']}: similarity and NegNCE take {ratio['similarity + NegNCE']} times the bare matrix "
        f"products, with TPM-CL {whole} times{captions}; by plain autograd similarity and NegNCE take "
        f"{ratio['(b) materialised autograd']} times. {_machine(said['device'], said['clock'], said)}."
    )


def decode(result: dict) -> str:
    clips, said = result["decode"], result["conditions"]
    ways = {"sequential": "reading on", "seek_per_frame": "a seek per frame", "opencv": "OpenCV"}
    ways |= {f"torchcodec_{mode}": f"torchcodec ({mode})" for mode in ("exact", "approximate")}
    slower = []
    for way, name in ways.items():
        times = [rows[way]["times_gop_skip"] for rows in clips.values() if way in rows]
        slower += [f"{name or way} {_range(times)} times"] if times else []
    wrong = sum(int(rows["gop_skip"]["off"].split(" ")[0]) for rows in clips.values())
    return (
        f"Frames out of {len(clips)} clips ({said['clips']}), CPU time beside this sampler's: {', '.join(slower)}. "
        f"Frames that this sampler got wrong: {wrong}. {_machine(said['cpu'], '1 thread', said)}."
    )


def adapters(result: dict) -> str:
    said, full, lora = result["conditions"], result["rows"]["full"], result["rows"]["lora"]
    return (
        f"Adapters of rank {said['r']} beside full fine-tuning ({said['model']}; {said['pairs']} pairs of "
        f"{said['frames']} frames, {said['steps']} steps of AdamW, {said['dtype']}): "
        f"{lora['trained_parameters'] / 1e6:.1f} of {lora['parameters'] / 1e6:.0f} million parameters trained, peak "
        f"memory {lora['peak_memory_mb'] / 1e3:.1f} GB beside {full['peak_memory_mb'] / 1e3:.1f}, the file "
        f"{lora['file_mb']} MB beside {full['file_mb']}. {_machine(said['cpu'], '1 thread', said)}."
    )


def backbones(result: dict) -> str:
    said, frames = result["conditions"], result["frames_per_clip"]
    costs = ", ".join(
        f"{name.split('/')[-1]} {seconds:.1f} s ({frames[name]} frames)"
        for name, seconds in result["cpu_seconds_per_clip"].items()
    )
    return (
        f"What a clip costs with each preset's vision tower, random weights of the true size, {said['dtype']}: "
        f"{costs}. {_machine(said['cpu'], 'CPU time', said)}."
    )


def single_vectors(result: dict) -> str:
    said, rows = result["conditions"], result["rows"]
    exact, pooled, max_sim = (_percent(rows[name]["text_to_video_R@1"]) for name in ("exact", "pooled", "max_sim"))
    return (
        f"One vector a clip in the place of the model's own score ({said['interaction']}), text→video R@1 among "
        f"{said['videos']} clips of {said['corpus']}, by the demo's model: {exact} by its own score, {pooled} by the "
        f"cosine of the sentence and the mean frame, {max_sim} by one-way MaxSim of words and frames."
    )


def frame_cache(result: dict) -> str:
    said, rows = result["conditions"], result["results"]
    each = "; ".join(
        f"{row['codec']} {row['speed_up']:.0f} times, {row['kB_per_frame']:.0f} kB a frame" for row in rows
    )
    return (
        f"Reading {said['frames_per_clip']} cached frames of {said['size']} pixels is faster than decoding the clip "
        f"({said['content']}): {each}. {_machine(said['cpu'], said['clock'], said)}."
    )


def tagger(result: dict) -> str:
    dev, captions, size = result["ewt_dev"], result["captions"], result["bytes"] / 1e6
    return (
        f"The part-of-speech tagger ({size:.1f} MB) tells content words (nouns, names, verbs, adjectives) from others "
        f"rightly for {_percent(dev['as_printed'])} of the words of EWT's development sentences as printed, "
        f"{_percent(dev['lower_cased_unpunctuated'])} where lower-cased and unpunctuated, and for "
        f"{_percent(captions['as_written'])} and {_percent(captions['lower_cased_unpunctuated'])} of the words of "
        f"{captions['captions']} captions marked for this project. Of EWT's names it finds "
        f"{_percent(dev['names_as_printed'])} and {_percent(dev['names_lower_cased_unpunctuated'])}."
    )


def metric(result: dict) -> str:
    said, last = result["conditions"], result["streaming"][-1]
    size, streamed = f"{result['speed'][0]['size']:,}", f"{last['size']:,}"
    faster = _range([row["ratio"] for row in result["speed"]])
    drawn = result["bootstrap"]
    whole, alone = drawn["with_intervals_ms"], drawn["metric_ms"]
    return (
        f"The metric of {size} x {size} scores is {faster} times as fast as sorting every row; with intervals of "
        f"{drawn['samples']:,} draws it takes {whole:.0f} ms, without {alone:.1f}; streamed from "
        f"{streamed} + {streamed} pooled vectors of {last['width']} it needs {last['peak_MB']:.0f} MB, where the whole "
        f"matrix would be {last['matrix_MB']:.0f} MB. {_machine(said['machine'], 'CPU time', said)}."
    )


def search(result: dict) -> str:
    plan, found = result["plan"], result["search"]["calibrated"]
    clock = "CPU time" if "clock" in result else "wall-clock"
    pooled = result["search"]["mean-pooled FAISS, no re-rank"]["recall@10"]
    return (
        f"Search in {result['rows']:,} generated rows ({result['kind']}), {result['queries']} queries: "
        f"{_percent(found['recall@10'])} of exact search's top 10 in {found['p50_ms']:.0f} ms (median), "
        f"{found['speedup_p50']:.0f} times as fast as the exact scan, scoring {plan['candidates']} candidates; "
        f"mean-pooled vectors alone find {_percent(pooled)}. {_machine(result['processor'], clock, result)}."
    )


def command(result: dict) -> str:
    said, held = result["conditions"], {name: size / 2**30 for name, size in result["server_bytes"].items()}
    alone, asked = (result[way] / result["torch"] for way in ("alone", "asked"))
    return (
        f"`dmae search` with one query in {said['rows']} rows ({said['model']}): a process of its own "
        f"costs {result['alone']:.1f} CPU s, {alone:.1f} times what `import torch` alone does there "
        f"({result['torch']:.1f} s); answered by a running `dmae serve` {result['asked']:.2f} CPU s ({asked:.2f} "
        f"times). The server holds {held['words']:.2f} GiB after words, {held['upload']:.2f} GiB after a clip was "
        f"uploaded. {said['cpu']}, CPU time, 1 thread, load {said['load']:.0f}."
    )


def films(result: dict) -> str:
    """From films to an index; a file may hold the films, a trained model's recall, or both."""
    said = []
    if "ways" in result:
        ways = dict(result["ways"])
        plain = ways.pop("each window alone")
        each = "; ".join(f"{name} {plain['wall_s'] / way['wall_s']:.1f} times as fast" for name, way in ways.items())
        busy = _percent(ways["windows together"]["busy"])
        said.append(
            f"Films ({result['films']}) cut into windows ({result['windows']}) on a CPU, against decoding and "
            f"embedding each window alone: {each}. Both cores are in use for {busy} of the time with windows together. "
            f"{_machine(result['processor'], 'wall-clock', result)}."
        )
    if "trained" in result:
        rows = {name: way for name, way in result["trained"]["ways"].items() if name != "float32"}
        each = "; ".join(f"{name} {_percent(row['recall@10'])}" for name, row in rows.items())
        said.append(
            f"Of the top 10 that a model trained on generated clips ({result['trained']['clips']}) finds in float32, "
            f"quicker ways to embed keep: {each}."
        )
    return " ".join(said)


def opening(result: dict) -> str:
    names = {"opening": "to open", "adding_1000": "to take 1,000 rows", "compacting": "to compact, a third deleted"}
    said = "; ".join(
        f"{name} {result[step]['seconds']:.1f} s by the clock, {result[step]['cpu_seconds']:.1f} s of CPU, "
        f"up to {result[step]['highest_own'] / 1e9:.2f} GB of its own"
        for step, name in names.items()
        if step in result
    )
    return (
        f"A process needs, for an index of {result['rows']:,} rows: {said}. {result['cores']} cores, load "
        f"{result['load_average']:.0f}."
    )


def qdrant_engine(result: dict) -> str:
    ways = {
        way: result[name]["after"]
        for name, way in {
            "no graph, as the backend asks": "as this project asks",
            "graph, 16 edges a node": "with its default graph",
        }.items()
    }
    each = "; ".join(
        f"{way} {_percent(row['of_first_10'])} of the exact first 10, {_percent(row['of_first_300'])} of the first 300"
        for way, row in ways.items()
    )
    rows = f"{result['rows']:,} rows (hard)"
    return f"Qdrant's engine (qdrant-edge-py, no server), asked for 300 of {rows}: {each}."


def waiting(result: dict) -> str:
    return (
        f"A training step waits for its batch {_percent(result['median'])} of the time (median of {result['lines']} "
        f"log lines; mean {_percent(result['mean'])}, the first line {_percent(result['first'])}, in which the workers "
        f"start) in {result['run']}, {result['samples_per_second']:.0f} samples a second on a CPU."
    )


def token_merging(result: dict) -> str:
    rows = {row["merge_tokens"]: row for row in result["tower"]}
    most, effects = max(rows), result["effects"]
    share = [f"{rows[most][name] / rows[0][name]:.2f}" for name in ("cpu_seconds", "peak_bytes")]

    def cost(merge: int, how: str) -> str:
        both = [row for row in effects if (row["merge_tokens"], row["how"]) == (merge, how)]
        return ", ".join(f"{row['effect']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})" for row in both)

    trained, tested = "trained so", "merged at test alone"
    rest = [
        f"{merge} of 16 patches: {cost(merge, trained)}, {tested} {cost(merge, tested)}"
        for merge in sorted({row["merge_tokens"] for row in effects})
    ]
    return (
        f"Token merging: a B/16 tower that merges {most} tokens before each block (forward and backward) takes "
        f"{share[0]} of the CPU seconds and {share[1]} of the bytes. Its cost in rsum, text→video and video→text, on "
        f"MovingObjects with small pretrained towers that merge before two of three blocks, {effects[0]['blocks']} "
        f"pairs of runs, 95 % intervals (without merging {effects[0]['without']:.0f}): {'; '.join(rest)}. "
        f"{result['conditions']['cpu']}, CPU time, {result['conditions']['threads']} thread."
    )


def mutation(result: dict) -> str:
    rooms = result["rooms"]
    total = {name: sum(room[name] for room in rooms.values()) for name in ("edits", "caught", "equivalent", "survived")}
    by_hand = sum(edit["kind"] == "by hand" for edit in result["edits"].values())
    untried = total["edits"] - total["caught"] - total["equivalent"] - total["survived"]
    listed = ", ".join(f"{name} {room['caught']}/{room['caught'] + room['survived']}" for name, room in rooms.items())
    return (
        f"Of {total['edits']} small wrong edits of the code, one at a time ({by_hand} written by hand, others drawn), "
        f"the tests notice {total['caught']}; {total['equivalent']} change nothing that anybody could see, "
        f"{total['survived']} passed: {_percent(result['score'])} "
        f"(at least {_percent(result['score_at_first'])} before tests were written for those that passed). "
        f"By room: {listed}." + (f" For the other {untried} no test could be run there." if untried else "")
    )


def held_back(result: dict) -> str:
    rooms = result["rooms"]
    total = {name: sum(room[name] for room in rooms.values()) for name in ("edits", "caught", "survived")}
    listed = ", ".join(f"{name} {room['caught']}/{room['caught'] + room['survived']}" for name, room in rooms.items())
    return (
        f"Of another draw of {total['edits']} such edits (seed {result['conditions']['seed']}), for which no test had "
        f"been written, the tests noticed {total['caught']} of the {total['caught'] + total['survived']} that "
        f"change something: {_percent(result['score'])}. By room: {listed}."
    )


LINES = {
    "demo.json": demo,
    "head_*.json": head,
    "decode_*.json": decode,
    "frame_cache.json": frame_cache,
    "tagger.json": tagger,
    "metric.json": metric,
    "mutation.json": mutation,
    "mutation_held_back.json": held_back,
    "search_*.json": search,
    "command.json": command,
    "films_cpu.json": films,
    "opening.json": opening,
    "qdrant_engine.json": qdrant_engine,
    "waiting.json": waiting,
    "adapters.json": adapters,
    "backbones.json": backbones,
    "single_vectors.json": single_vectors,
    "token_merging.json": token_merging,
}


def _machine(device: str, clock: str, conditions: dict) -> str:
    """Where it was measured; a load beyond the cores says that the machine was busy with other things."""
    load = conditions.get("load_average", conditions.get("load_at_start"))
    load = load[0] if isinstance(load, list) else load
    number = conditions.get("threads") if "thread" not in clock else None
    threads = [f"{number} thread{'' if int(number) == 1 else 's'}"] if number else []
    return ", ".join([device, clock, *threads] + ([f"load {load:.0f}"] if load is not None else []))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"
