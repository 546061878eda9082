#!/usr/bin/env python3
"""obstore (the Rust object_store): put-if-absent and compare-and-swap by racing writers, multipart, listing, ranges."""

import threading

import obstore
from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError
from obstore.store import S3Store

from harness import MIB, QUICK, Check, data, expect, same

WRITERS = 8
ROUNDS = 10 if QUICK else 50
LOST = (AlreadyExistsError, PreconditionError)


def race(writers):
    """Runs every function at once; gives back which won and what else happened."""
    barrier = threading.Barrier(len(writers))
    outcome = [None] * len(writers)

    def go(index):
        barrier.wait()
        try:
            writers[index]()
            outcome[index] = "won"
        except LOST:
            outcome[index] = "lost"
        except Exception as error:  # reported by the caller
            outcome[index] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=go, args=(index,)) for index in range(len(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


def winner(outcome, what):
    odd = [one for one in outcome if one not in ("won", "lost")]
    expect(not odd, f"{what}: {odd[:2]}")
    same(outcome.count("won"), 1, f"{what}: number of winners")
    return outcome.index("won")


def main():
    with Check("obstore") as check:
        bucket = check.bucket()
        stores = [S3Store(bucket, endpoint=check.endpoint, access_key_id=check.access_key,
                          secret_access_key=check.secret_key, region=check.region, virtual_hosted_style_request=False,
                          conditional_put="etag", client_options={"allow_http": True}) for _ in range(WRITERS)]
        store = stores[0]

        def body(key):
            return bytes(obstore.get(store, key).bytes())

        with check.step("put, get, head, ranges"):
            content = data(100_000)
            obstore.put(store, "k", content)
            same(body("k"), content, "body")
            same(obstore.head(store, "k")["size"], len(content), "size")
            same(bytes(obstore.get_range(store, "k", start=10, end=20)), content[10:20], "range")
            same([bytes(part) for part in obstore.get_ranges(store, "k", starts=[0, 99_990], ends=[5, 100_000])],
                 [content[:5], content[-10:]], "ranges")
        with check.step("multipart of 12 MiB"):
            content = data(12 * MIB)
            obstore.put(store, "multi", content, use_multipart=True, chunk_size=5 * MIB, max_concurrency=4)
            same(body("multi"), content, "body")
        with check.step("list, list_with_delimiter, copy, rename, delete"):
            for key in ("l/1", "l/2 ü", "l/d/3"):
                obstore.put(store, key, b"x")
            same(sorted(item["path"] for page in obstore.list(store, "l") for item in page), ["l/1", "l/2 ü", "l/d/3"], "list")
            answer = obstore.list_with_delimiter(store, "l")
            same((sorted(item["path"] for item in answer["objects"]), list(answer["common_prefixes"])),
                 (["l/1", "l/2 ü"], ["l/d"]), "list_with_delimiter")
            obstore.copy(store, "l/1", "l/copied")
            obstore.rename(store, "l/copied", "l/renamed")
            same(body("l/renamed"), b"x", "body")
            obstore.delete(store, ["l/1", "l/2 ü", "l/d/3", "l/renamed"])
            same([item for page in obstore.list(store, "l") for item in page], [], "left")
            try:
                obstore.get(store, "l/1")
                raise AssertionError("a deleted key was read")
            except (NotFoundError, FileNotFoundError):
                pass
        with check.step(f"put-if-absent by {WRITERS} racing writers, {ROUNDS} rounds: exactly one wins each"):
            for number in range(ROUNDS):
                key = f"absent/{number}"
                bodies = [f"round {number} writer {index}".encode() * (1 + index * 900) for index in range(WRITERS)]
                outcome = race([lambda i=i: obstore.put(stores[i], key, bodies[i], mode="create", use_multipart=False)
                                for i in range(WRITERS)])
                same(body(key), bodies[winner(outcome, f"round {number}")], f"round {number}: the winner's body")
        with check.step(f"compare-and-swap by {WRITERS} racing writers, {ROUNDS} rounds: exactly one wins each"):
            version = obstore.put(store, "swap", b"start", use_multipart=False)
            for number in range(ROUNDS):
                bodies = [f"round {number} writer {index}".encode() * (1 + index * 900) for index in range(WRITERS)]
                mode = {"e_tag": version["e_tag"]}
                results = [None] * WRITERS

                def swap(index):
                    results[index] = obstore.put(stores[index], "swap", bodies[index], mode=mode, use_multipart=False)
                won = winner(race([lambda i=i: swap(i) for i in range(WRITERS)]), f"round {number}")
                same(body("swap"), bodies[won], f"round {number}: the winner's body")
                version = results[won]
                same(obstore.head(store, "swap")["e_tag"], version["e_tag"], f"round {number}: ETag")
        with check.step("a counter incremented by compare-and-swap loses nothing"):
            count(stores, store, body)


def count(stores, store, body):
    obstore.put(store, "counter", b"0", use_multipart=False)
    each = 5
    errors = []

    def add(own):
        try:
            for _ in range(each):
                while True:
                    found = obstore.get(own, "counter")
                    mode = {"e_tag": found.meta["e_tag"]}
                    try:
                        obstore.put(own, "counter", str(int(bytes(found.bytes())) + 1).encode(), mode=mode,
                                    use_multipart=False)
                        break
                    except LOST:
                        continue
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=add, args=(own,)) for own in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same(errors[:2], [], "errors")
    same(int(body("counter")), each * len(stores), "count")


if __name__ == "__main__":
    main()
