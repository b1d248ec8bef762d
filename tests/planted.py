"""Records without a fault, and with faults in known rows, for audits and rules."""

import random

RANDOM = random.Random(0)
VOCABULARY = sorted({"".join(RANDOM.choices("abcdefghijklmnop", k=6)) for _ in range(2000)})


def sentence(source, least=10, most=30):
    words = source.choices(VOCABULARY, k=source.randint(least, most))
    return " ".join(words).capitalize() + "."


def pairs(count=300, seed=1):
    """Pairs without a fault: all texts differ, and nothing tells which response is chosen."""
    source = random.Random(seed)
    rows, sizes = [], (0, 0)
    for number in range(count):
        # Each length comes twice, once chosen and once rejected.
        new = source.randint(10, 30), source.randint(10, 30)
        sizes = sizes[::-1] if number % 2 else new
        chosen, rejected = (sentence(source, size, size) for size in sizes)
        rows.append({"prompt": sentence(source, 8, 12), "chosen": chosen, "rejected": rejected})
    return rows


def responses(count=300, seed=2):
    source = random.Random(seed)
    return [{"prompt": sentence(source, 8, 12), "response": sentence(source)} for _ in range(count)]


def as_cp1252(text):
    """UTF-8 read as another encoding; what that leaves undefined becomes a control character."""
    return "".join(
        bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in text.encode()
    )


def planted(fault):
    """Clean pairs with a fault in some rows, and options of the audit that find it."""
    rows, options = pairs(), {}
    a, b = rows[5]["chosen"], rows[5]["rejected"]
    if fault == "empty_texts":
        rows[7]["chosen"], rows[9]["prompt"] = "", " \n"
        expected = (7, 9)
    elif fault == "lone_surrogates":
        rows[7]["rejected"] += "\ud83d"
        expected = (7,)
    elif fault == "replacement_characters":
        rows[7]["prompt"] += "\ufffd"
        expected = (7,)
    elif fault == "mojibake":
        rows[7]["chosen"], rows[8]["rejected"] = (
            as_cp1252("It\u2019s here, at last."),
            as_cp1252("Ein schöner Tag."),
        )
        rows[9]["chosen"], rows[10]["chosen"] = (
            as_cp1252("Look at this 😀 now."),
            as_cp1252("привет"),
        )
        expected = (7, 8, 9, 10)
    elif fault == "control_characters":
        rows[7]["chosen"], rows[8]["rejected"] = "A bell\x07 rings.", "A next\x85line."
        expected = (7, 8)
    elif fault == "html_entities":
        rows[7]["chosen"], rows[8]["rejected"] = "Tom &amp; Mia", "It&#39;s Tom."
        expected = (7, 8)
    elif fault == "other_script":
        rows[7]["chosen"] = "Том очень любит свою собаку."
        rows[8]["prompt"] = "汤姆去公园玩"
        expected = (7, 8)
    elif fault == "identical_responses":
        rows[7]["chosen"] = rows[7]["rejected"] + "\n"
        expected = (7,)
    elif fault == "contradictory_pairs":
        rows[70] = {"prompt": rows[5]["prompt"].upper(), "chosen": b, "rejected": a}
        expected = (5, 70)
    elif fault == "preference_cycles":
        third = rows[6]["chosen"]
        rows[70] = {"prompt": rows[5]["prompt"], "chosen": b, "rejected": third}
        rows[71] = {"prompt": rows[5]["prompt"], "chosen": third, "rejected": a}
        # No part of the circle, which it only leads to, and the same texts without a circle.
        rows[72] = {"prompt": rows[5]["prompt"], "chosen": rows[8]["chosen"], "rejected": a}
        rows[73] = {"prompt": rows[9]["prompt"], "chosen": third, "rejected": a}
        expected = (5, 70, 71)
    elif fault == "duplicate_records":
        rows[70] = {name: f" {text.upper()}" for name, text in rows[5].items()}
        expected = (70,)
    elif fault in ("duplicate_prompts", "duplicate_chosen", "duplicate_rejected"):
        column = {"prompts": "prompt"}.get(fault.split("_")[1], fault.split("_")[1])
        rows[70][column] = rows[80][column] = rows[5][column].replace(" ", "  ")
        expected = (70, 80)
    elif fault == "near_duplicate_records":
        rows[70] = {name: f"{text} indeed" for name, text in rows[5].items()}
        expected = (70,)
    elif fault in ("near_duplicate_prompts", "near_duplicate_chosen", "near_duplicate_rejected"):
        column = {"prompts": "prompt"}.get(fault.split("_")[2], fault.split("_")[2])
        rows[70][column] = rows[5][column] + " Indeed"
        expected = (70,)
    elif fault == "leaked_prompts":
        options["against"] = [{"prompt": "unlike"}, {"prompt": rows[70]["prompt"].upper()}]
        expected = (70,)
    elif fault == "near_leaked_prompts":
        rows[75]["prompt"] = rows[70]["prompt"]
        options["against"] = [{"prompt": rows[70]["prompt"] + " please"}]
        expected = (70, 75)
    elif fault == "leaked_responses":
        options["against"] = [{"text": rows[70]["chosen"]}, {"text": rows[71]["rejected"]}]
        expected = (70, 71)
    elif fault == "near_leaked_responses":
        options["against"] = [{"text": rows[71]["rejected"] + " indeed"}]
        expected = (71,)
    return rows, options, expected


PLANTED = [
    "empty_texts",
    *("lone_surrogates", "replacement_characters", "mojibake", "control_characters"),
    *("html_entities", "other_script", "identical_responses", "contradictory_pairs"),
    *("preference_cycles", "duplicate_records", "duplicate_prompts", "duplicate_chosen"),
    *("duplicate_rejected", "near_duplicate_records", "near_duplicate_prompts"),
    *("near_duplicate_chosen", "near_duplicate_rejected", "leaked_prompts"),
    *("near_leaked_prompts", "leaked_responses", "near_leaked_responses"),
]


def noisy(flipped, count=600):
    """Pairs whose chosen responses have good words, with some in the wrong order."""
    rows, source = pairs(count), random.Random(5)
    for number, row in enumerate(rows):
        row["chosen"] += " " + " ".join(source.choices(["good", "kind", "true", "wise"], k=3))
        row["rejected"] += " " + " ".join(source.choices(["bad", "mean", "false", "rude"], k=3))
        if number in flipped:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return rows
