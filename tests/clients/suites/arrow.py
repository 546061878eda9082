"""pyarrow's S3 file system (the AWS C++ SDK): a partitioned Parquet data set written and read back."""

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq

from world import check


def run(world):
    world.sh("aws", "s3", "mb", f"s3://{world.bucket}")
    fs = pa.fs.S3FileSystem(
        access_key=world.access, secret_key=world.secret, endpoint_override=world.host, scheme="http",
        region=world.region,
    )
    rows = 20_000 if world.quick else 400_000
    table = pa.table({"n": range(rows), "part": [n % 5 for n in range(rows)], "text": [f"row {n}" for n in range(rows)]})
    base = f"{world.bucket}/table"
    ds.write_dataset(table, base, filesystem=fs, format="parquet", partitioning=["part"])
    back = ds.dataset(base, filesystem=fs, format="parquet", partitioning=["part"]).to_table()
    check(back.num_rows == rows, f"{rows} rows, {back.num_rows} came back")
    check(sum(back["n"].to_pylist()) == rows * (rows - 1) // 2, "each once")
    some = ds.dataset(base, filesystem=fs, format="parquet", partitioning=["part"]).to_table(filter=ds.field("n") < 100)
    check(some.num_rows == 100, "ranges of a file are enough for a filter")
    with fs.open_output_stream(f"{world.bucket}/stream") as out:
        for _ in range(12):
            out.write(b"z" * (1 << 20))
    check(fs.get_file_info(f"{world.bucket}/stream").size == 12 << 20, "a stream of parts")
    pq.write_table(table, f"{world.bucket}/one.parquet", filesystem=fs)
    check(pq.read_table(f"{world.bucket}/one.parquet", filesystem=fs).equals(table), "one file")
    fs.delete_dir_contents(world.bucket)
