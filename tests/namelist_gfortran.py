#!/usr/bin/env python3
"""The namelist parser against the Fortran runtime's own reader, by random files. Prints TAP.

Whatever the parser accepts, gfortran must accept with the same bits; whatever it refuses, gfortran refuses too or the
refusal is one of the deliberate restrictions below, each with a test line of its own.

namelist_dump (built from namelist_dump.c) is looked for in tests/ of the current folder, or named by NAMELIST_DUMP."""

import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
DUMP = os.environ.get("NAMELIST_DUMP", "tests/namelist_dump")
FC = os.environ.get("FC") or "gfortran"
# group -> key -> (kind, number of elements, whether it is an array)
KEYS = {
    "numbers": {"i": ("int", 1, False), "j": ("int", 1, False), "k": ("int", 6, True)},
    "reals": {"x": ("real", 1, False), "y": ("real", 5, True), "e1": ("real", 1, False)},
    "flags": {"b": ("logical", 1, False), "c": ("logical", 4, True), "first": ("logical", 1, False)},
    "words": {"s": ("string", 1, False), "t": ("string", 3, True)},
}
WORD_LENGTH = 40

# What gfortran reads and the parser refuses: (name, text, part of the message).
RESTRICTIONS = [
    ("text between groups", "&numbers i = 1 / junk\n&reals x = 1 /\n", "text outside of a group"),
    ("text before the first group", "a title\n&numbers i = 1 /\n", "text outside of a group"),
    ("&end", "&numbers i = 1 &end\n", "does not end a group"),
    ("$group", "$numbers i = 1 /\n", "a group starts with '&'"),
    ("a null between commas", "&numbers k = 1,,3 /\n", "empty value before the comma"),
    ("a null behind the equals sign", "&numbers i = \n j = 2 /\n", "empty value: nothing is given"),
    ("a comment behind the equals sign", "&numbers i =! none\n j = 1 /\n", "a comment between"),
    ("a null at the end", "&numbers j = 1 i = /\n", "empty value: nothing is given"),
    ("a repeated null", "&numbers k = 2* 3 /\n", "empty value: nothing is repeated"),
    ("a leading comma", "&numbers k = ,1 /\n", "empty value before the comma"),
    ("one element, several values", "&numbers k(2) = 1, 2 /\n", "values for one element"),
    ("a section with too few values", "&numbers k(2:4) = 1, 2 /\n", "elements"),
    ("a whole section", "&numbers k(:) = 1, 2 /\n", "is not understood"),
    ("an open section", "&numbers k(3:) = 1 /\n", "is not understood"),
    ("a stride", "&numbers k(1:5:2) = 1, 2, 3 /\n", "is not understood"),
    ("a string over two lines", "&words s = 'ab\ncd' /\n", "the string is not closed"),
    ("a text without quotes behind a repeat", "&words t = 2*:c /\n", "unexpected"),
    ("an equals sign behind a value", "&flags b = .f.= /\n", "unexpected character behind a value"),
    ("a carriage return inside a line", "&numbers i = 1\rj = 2 /\n", "byte 0x0D is not allowed"),
    ("a long logical", "&flags b = .tuesday. /\n", "neither a number"),
    ("a logical without its last point", "&flags b = .true /\n", "neither a number"),
    ("an exponent without a letter", "&reals x = 1+2 /\n", "neither a number"),
    ("an exponent q", "&reals x = 1q2 /\n", "neither a number"),
    ("infinity", "&reals x = inf /\n", "not a finite number"),
    ("negative infinity", "&reals x = -Infinity /\n", "not a finite number"),
    ("not a number", "&reals x = NaN /\n", "not a finite number"),
    ("a comma at the start of a line", "&numbers k = 1, 2\n , 3 /\n", "a comma at the start of a line"),
    ("a value behind a comma and a comment", "&numbers k = 1, ! one\n 3 /\n", "behind a comma and a comment"),
    ("the name of a key on one line, = on the next", "&numbers i\n = 1 /\n", "no '=' behind"),
]


def write(path, text):
    with open(path, "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def readings(command, paths):
    """Per file the lines that the program printed about it; None where it crashed, which gfortran's reader can."""
    done = subprocess.run(command + paths, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if done.returncode and len(paths) > 1:
        return {path: lines for part in (paths[:len(paths) // 2], paths[len(paths) // 2:])
                for path, lines in readings(command, part).items()}
    if done.returncode:
        return {paths[0]: None}
    out = {}
    for line in done.stdout.decode("latin-1").split("\n"):
        if line.startswith("= "):
            current = out.setdefault(line[2:], [])
        elif line:
            current.append(line)
    return out


def oracle_values(lines):
    """(values by (group, key, index), groups refused, groups not found)."""
    values, refused, missing = {}, set(), set()
    if lines is None:
        return values, {"crash"}, missing
    for line in lines:
        if line[0] in "?-":
            (refused if line[0] == "?" else missing).add(line[2:])
        else:
            group, key, index, kind, value = line.split(" ")
            if kind == "string":
                value = bytes.fromhex(value[1:]).rstrip(b" ")
            values[group, key, int(index)] = value
    return values, refused, missing


def our_values(lines):
    """(values, groups), or (None, why) where the parser or the types and extents above refuse the file."""
    values, groups, messages = {}, [], [line for line in lines if line[0] == "!"]
    if messages:
        return None, " / ".join(messages)
    for line in lines:
        if line[0] == "&":
            groups.append(line[2:])
            if line[2:] not in KEYS or groups.count(line[2:]) > 1:
                return None, "settings: group"
            continue
        group, key, index, kind, *value = line.split(" ")
        wanted, extent, _ = KEYS[group].get(key, (None, 0, False))
        if int(index) > extent or (group, key, int(index)) in values:
            return None, "settings: key or extent"
        if wanted == "real" and kind in ("int", "real"):
            value = value[1]
        elif wanted != kind:
            return None, "settings: type"
        elif kind == "int":
            value = str(int(value[0]))
            if not -2**63 <= int(value) < 2**63:
                return None, "settings: range"
        elif kind == "string":
            value = bytes.fromhex(value[0][1:])
            if len(value) > WORD_LENGTH:
                return None, "settings: string length"
            value = value.rstrip(b" ")
        else:
            value = value[0]
        values[group, key, int(index)] = value
    return values, groups


def same(ours, groups, oracle):
    values, refused, missing = oracle
    return not refused and not missing & set(groups) and ours == values


# --- random files ----------------------------------------------------------------------------------------------------

def random_case(dice, text):
    return "".join(dice.choice((c.lower(), c.upper())) for c in text)


def spell_integer(dice, value):
    sign = "-" if value < 0 else dice.choice(("", "", "+"))
    return sign + "0" * dice.choice((0, 0, 0, 2)) + str(abs(value))


def spell_real(dice):
    """A spelling and the value that Python, a third reader, gives it."""
    whole = dice.choice(("", str(dice.randrange(10)), str(dice.randrange(10**6)), str(dice.randrange(10**25))))
    fraction = dice.choice(("", str(dice.randrange(10)), "%06d" % dice.randrange(10**6),
                            "%030d" % dice.randrange(10**30)))
    if not whole and not fraction:
        whole = "0"
    text = dice.choice(("", "", "+", "-")) + whole
    text += "." + fraction if fraction else dice.choice((".", ""))
    if dice.random() < 0.5:
        exponent = dice.choice((0, 1, -1, dice.randrange(-30, 30), dice.randrange(-340, 280)))
        text += dice.choice("eEdD") + (dice.choice(("+", "")) if exponent >= 0 else "-") + \
            dice.choice(("%d", "%02d", "%03d")) % abs(exponent)
    return text, float(text.lower().replace("d", "e"))


def spell_string(dice):
    alphabet = "abcXYZ019 '\"!/,=()*:.;%\t\\\u00e9"
    value = "".join(dice.choice(alphabet) for _ in range(dice.randrange(12)))
    quote = dice.choice("'\"")
    return quote + value.replace(quote, 2 * quote) + quote, value.encode()


def gap(dice, least, newline, comment=True):
    """Blanks, perhaps an end of line, where `comment` says so with one before it: at least `least` characters."""
    out = " " * dice.choice((least, least, 1, 3)) + "\t" * dice.choice((0, 0, 0, 1))
    if dice.random() < 0.15:
        out += " " + dice.choice(("", "! a comment, with 'quote = 3 / and more" if comment else "")) + newline
        out += dice.choice(("", "", "  ! another one, on a line of its own" + newline))
    return out


def random_value(dice, kind):
    if kind == "int":
        value = dice.choice((0, 1, -1, dice.randrange(-100, 100), dice.randrange(-2**63, 2**63)))
        return spell_integer(dice, value), str(value)
    if kind == "real":
        if dice.random() < 0.2:
            value = dice.randrange(-10**9, 10**9)
            return spell_integer(dice, value), "%016X" % struct.unpack("<Q", struct.pack("<d", value))
        text, value = spell_real(dice)
        return text, "%016X" % struct.unpack("<Q", struct.pack("<d", value))
    if kind == "logical":
        value = dice.choice("tf")
        long = {"t": "true", "f": "false"}[value]
        return random_case(dice, dice.choice((value, long, "." + value + ".", "." + long + "."))), value
    text, value = spell_string(dice)
    return text, value.rstrip(b" ")


def random_values(dice, kind, count, newline):
    """Spelling and values of so many elements, with repeats where neighbours are equal by choice."""
    parts, values = [], []
    while len(values) < count:
        text, value = random_value(dice, kind)
        repeat = dice.randrange(1, count - len(values) + 1) if dice.random() < 0.25 else 1
        parts.append(("%d*" % repeat if repeat > 1 or dice.random() < 0.05 else "") + text)
        values += [value] * repeat
    out = parts[0]
    for part in parts[1:]:
        out += dice.choice(("", " ")) + "," + gap(dice, 0, newline, False) + part if dice.random() < 0.5 \
            else gap(dice, 1, newline) + part
    return out, values


def random_file(dice):
    newline = dice.choice(("\n", "\n", "\r\n"))
    text, values = "", {}
    for group in dice.sample(sorted(KEYS), len(KEYS)):
        text += gap(dice, 0, newline) + "&" + random_case(dice, group) + gap(dice, 1, newline)
        parts = []
        for key, (kind, extent, array) in KEYS[group].items():
            if dice.random() < 0.2:
                continue
            if array:
                choice, low, count = dice.random(), 1, dice.randrange(1, extent + 1)
                name = random_case(dice, key)
                if choice < 0.3:
                    low, count = dice.randrange(1, extent + 1), 1
                    name += "(%d)" % low
                elif choice < 0.6:
                    low = dice.randrange(1, extent - count + 2)
                    name += "(%d:%d)" % (low, low + count - 1)
            else:
                name, low, count = random_case(dice, key), 1, 1
            spelling, list_ = random_values(dice, kind, count, newline)
            for n, value in enumerate(list_):
                values[group, key, low + n] = value
            parts.append(name + " " * dice.choice((0, 1, 2)) + "=" + gap(dice, 0, newline, False) + spelling)
        dice.shuffle(parts)
        text += "".join(part + dice.choice((gap(dice, 1, newline), "," + gap(dice, 0, newline), newline))
                        for part in parts)
        text += newline + "/" + dice.choice((newline, " ! the end of '" + group + newline))
    return text.rstrip("\r\n") if dice.random() < 0.2 else text, values


def mutate(dice, text):
    alphabet = "/=,'\"()*:!.+-eEdDtTfF 0123456789\n\tkxbcs;%_"
    characters = list(text)
    for _ in range(dice.randrange(1, 4)):
        where = dice.randrange(len(characters))
        what = dice.random()
        if what < 0.35:
            characters[where] = dice.choice(alphabet)
        elif what < 0.6:
            characters.insert(where, dice.choice(alphabet))
        elif what < 0.85:
            del characters[where]
        else:
            other = dice.randrange(len(characters))
            characters[where], characters[other] = characters[other], characters[where]
    return "".join(characters)


# --- the test --------------------------------------------------------------------------------------------------------

def main():
    fortran = shutil.which(FC.split()[0])
    if not fortran:
        print("1..0 # SKIP no Fortran compiler")
        return 0
    count = 0

    def ok(holds, name, *details):
        nonlocal count
        count += 1
        for detail in details if not holds else ():
            print("# " + str(detail).replace("\n", "\n# "))
        print("%sok %d - %s" % ("" if holds else "not ", count, name))

    with tempfile.TemporaryDirectory() as folder:
        oracle = os.path.join(folder, "oracle")
        built = subprocess.run(FC.split() + ["-O0", "-J", folder, "-o", oracle,
                                             os.path.join(HERE, "namelist_oracle.f90")])
        if built.returncode:
            print("1..0 # SKIP the Fortran compiler does not work")
            return 0

        def both(texts):
            paths = [os.path.join(folder, "%05d.nml" % n) for n in range(len(texts))]
            out = []
            for path, text in zip(paths, texts):
                write(path, text)
            ours = readings([DUMP], paths)
            for path, text in zip(paths, texts):  # gfortran takes a last line without its end for a missing group
                write(path, text + ("" if text.endswith("\n") else "\n"))
            theirs = readings([oracle], paths)
            for path in paths:
                out.append((our_values(ours[path]), oracle_values(theirs[path])))
            return out

        dice = random.Random(20240607)
        files = [random_file(dice) for _ in range(600)]
        wrong = []
        for (text, truth), ((values, groups), reference) in zip(files, both([text for text, _ in files])):
            if values != truth or not same(values, groups, reference):
                wrong.append((text, "refused: %s" % groups if values is None else "", "ours", values, "truth", truth,
                              "gfortran", reference))
        ok(not wrong, "%d random spellings read as they were meant and as gfortran reads them" % len(files),
           *(wrong[0] if wrong else ()))

        texts = [mutate(dice, dice.choice(files)[0]) for _ in range(1500)]
        wrong, unlisted, accepted, refused = [], [], 0, 0
        for text, ((values, why), reference) in zip(texts, both(texts)):
            if values is not None and same(values, why, reference):
                accepted += 1
            elif values is not None:
                wrong.append((text, "ours", values, why, "gfortran", reference))
            else:
                refused += 1
                if not why.startswith("settings") and not reference[1] and not reference[2] \
                        and not any(message in why for _, _, message in RESTRICTIONS):
                    unlisted.append((text, why))
        ok(not wrong, "%d files with random changes: what is accepted, gfortran reads the same" % len(texts),
           len(wrong), *(wrong[0] if wrong else ()))
        ok(not unlisted, "what is refused, gfortran refuses or one of the restrictions below", len(unlisted),
           *(unlisted[0] if unlisted else ()))
        ok(accepted > 100 and refused > 100, "the changed files are a mixture",
           "%d accepted, %d refused" % (accepted, refused))

        results = both([text for _, text, _ in RESTRICTIONS])
        for (name, text, message), ((values, why), (_, refused, _)) in zip(RESTRICTIONS, results):
            ok(values is None and message in why and not refused,
               "gfortran reads it, the parser refuses: " + name, why, values, refused)
    print("1..%d" % count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
