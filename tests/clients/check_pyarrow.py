#!/usr/bin/env python3
"""pyarrow's S3FileSystem (the AWS C++ SDK): Parquet files and partitioned datasets written and read back."""

import pyarrow
import pyarrow.dataset
import pyarrow.parquet
from pyarrow import fs

from harness import MIB, QUICK, Check, data, expect, same


def main():
    with Check("pyarrow") as check:
        bucket = check.bucket()
        s3 = fs.S3FileSystem(access_key=check.access_key, secret_key=check.secret_key, region=check.region,
                             endpoint_override=check.endpoint, scheme="http")
        rows = 100_000 if QUICK else 1_000_000
        table = pyarrow.table({"id": range(rows), "group": [index % 5 for index in range(rows)],
                               "text": [f"row {index} ü" for index in range(rows)]})
        with check.step(f"write and read Parquet, {rows} rows"):
            pyarrow.parquet.write_table(table, f"{bucket}/t.parquet", filesystem=s3)
            expect(pyarrow.parquet.read_table(f"{bucket}/t.parquet", filesystem=s3).equals(table), "another table came back")
        with check.step("read two columns of a row group (ranges)"):
            file = pyarrow.parquet.ParquetFile(f"{bucket}/t.parquet", filesystem=s3)
            part = file.read_row_group(0, columns=["id", "group"])
            expect(part.equals(table.select(["id", "group"]).slice(0, part.num_rows)), "another row group came back")
        with check.step("partitioned dataset: write, list, filter"):
            small = table.slice(0, 10_000)
            pyarrow.dataset.write_dataset(small, f"{bucket}/set", format="parquet", partitioning=["group"], filesystem=s3)
            dataset = pyarrow.dataset.dataset(f"{bucket}/set", format="parquet", partitioning=["group"], filesystem=s3)
            same(dataset.count_rows(), 10_000, "rows")
            found = dataset.to_table(filter=pyarrow.dataset.field("group") == 3)["id"].to_pylist()
            same(sorted(found), [index for index in range(10_000) if index % 5 == 3], "ids of a partition")
        with check.step("stream of 12 MiB written in pieces and read back"):
            content = data(12 * MIB)
            with s3.open_output_stream(f"{bucket}/stream") as out:
                for start in range(0, len(content), 100_003):
                    out.write(content[start:start + 100_003])
            with s3.open_input_stream(f"{bucket}/stream") as back:
                same(back.read(), content, "body")
        with check.step("file info, move, copy, delete"):
            same(s3.get_file_info(f"{bucket}/stream").size, 12 * MIB, "size")
            same(s3.get_file_info(f"{bucket}/none").type, fs.FileType.NotFound, "type of a missing file")
            s3.copy_file(f"{bucket}/stream", f"{bucket}/copy +1")
            s3.move(f"{bucket}/copy +1", f"{bucket}/moved")
            same(s3.get_file_info(f"{bucket}/copy +1").type, fs.FileType.NotFound, "type of the moved file")
            names = [info.base_name for info in s3.get_file_info(fs.FileSelector(f"{bucket}/set"))]
            same(sorted(names), ["0", "1", "2", "3", "4"], "directories")
            s3.delete_dir(f"{bucket}/set")
            s3.delete_file(f"{bucket}/moved")
            left = sorted(info.path for info in s3.get_file_info(fs.FileSelector(bucket, recursive=True)) if info.is_file)
            same(left, [f"{bucket}/stream", f"{bucket}/t.parquet"], "left")


if __name__ == "__main__":
    main()
