"""obstore: put-if-absent and compare-and-swap by eight racing writers. Exactly one wins each round."""

import threading

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import S3Store

from world import check

WRITERS = 8


def run(world):
    world.sh("aws", "s3", "mb", f"s3://{world.bucket}")
    store = S3Store(
        world.bucket, endpoint=world.endpoint, access_key_id=world.access, secret_access_key=world.secret,
        region=world.region, client_options={"allow_http": True}, conditional_put="etag",
    )
    rounds = 10 if world.quick else 50
    for number in range(rounds):
        winners = race(lambda me: absent(store, f"absent/{number}", me))
        check(len(winners) == 1, f"put-if-absent round {number}: {len(winners)} won")
        check(bytes(obstore.get(store, f"absent/{number}").bytes()) == f"writer {winners[0]}".encode(),
              "the winner's bytes are there")

    obstore.put(store, "counter", b"0")
    for number in range(rounds):
        seen = obstore.get(store, "counter")
        tag, value = seen.meta["e_tag"], int(bytes(seen.bytes()))
        winners = race(lambda me: swap(store, "counter", tag, str(value + 1).encode()))
        check(len(winners) == 1, f"compare-and-swap round {number}: {len(winners)} won")
        check(int(bytes(obstore.get(store, "counter").bytes())) == value + 1, "counted once")

    many(store, WRITERS, 5 if world.quick else 20)
    listed = [one["path"] for page in obstore.list(store, prefix="absent/") for one in page]
    check(len(listed) == rounds, f"{rounds} objects are listed: {len(listed)}")
    return f"{rounds} rounds of {WRITERS}"


def race(act):
    start, winners, errors = threading.Barrier(WRITERS), [], []

    def one(me):
        start.wait()
        try:
            if act(me):
                winners.append(me)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=one, args=(me,)) for me in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(not errors, f"an unexpected error: {errors[:1]}")
    return winners


def absent(store, key, me):
    try:
        obstore.put(store, key, f"writer {me}".encode(), mode="create")
        return True
    except AlreadyExistsError:
        return False


def swap(store, key, tag, value):
    try:
        obstore.put(store, key, value, mode={"e_tag": tag})
        return True
    except PreconditionError:
        return False


def many(store, writers, each):
    """All count one object up, each until it has counted `each` times: nothing is lost."""
    obstore.put(store, "sum", b"0")

    def one(_):
        done = 0
        while done < each:
            seen = obstore.get(store, "sum")
            tag, value = seen.meta["e_tag"], int(bytes(seen.bytes()))
            done += swap(store, "sum", tag, str(value + 1).encode())
        return True

    race(one)
    total = int(bytes(obstore.get(store, "sum").bytes()))
    check(total == writers * each, f"{writers * each} counts were acknowledged, {total} are there")
