"""A reader of docs/store-format.md, written from that page: it knows nothing of actlake."""

import json
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow.parquet as pq

KNOWN_DTYPES = {"float16": "<f2", "float32": "<f4"}  # and bfloat16, which NumPy lacks
KNOWN_FIELDS = {"dim", "dtype", "compression"}
KINDS = {"open", "corpus", "sites", "numerics", "units", "released", "merged"}


def unsealed(path):
    body = json.loads(path.read_bytes())
    canonical = json.dumps(body["content"], sort_keys=True, separators=(",", ":")).encode()
    assert body["crc32c"] == f"{google_crc32c.value(canonical):08x}", path
    return body["content"]


def chunk_rows_of(geometry, row_bytes):
    """Rows of a chunk, where a row takes so many bytes."""
    most = max(1, geometry["chunk_bytes"] // row_bytes)
    unit_rows = geometry["unit_rows"]
    return max(rows for rows in range(1, unit_rows + 1) if rows <= most and unit_rows % rows == 0)


class PlainReader:
    """A store in a folder, uncompressed."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.sites, self.unknown, self.records = {}, [], {}
        self.covered, self.released = {}, {}
        for entry in self._chain():
            self._apply(entry)

    # The ledger.

    def _chain(self):
        paths = (self.folder / "ledger").glob("*.json")
        entries = {int(path.stem): unsealed(path) for path in paths}
        chain, number = [], max(entries)
        while number:
            assert entries[number]["number"] == number
            chain.append(entries[number])
            number = entries[number].get("first", number) - 1
        return chain[::-1]

    def _apply(self, entry):
        assert entry["kind"] in KINDS, "a newer format"
        for other in entry.get("others", ()):
            self._apply(other)
        if entry["kind"] == "corpus":
            self.schema = entry["schema"]
        for site in entry["sites"] if entry["kind"] == "sites" else ():
            schema = site["schema"]
            if set(schema) == KNOWN_FIELDS and schema["dtype"] in KNOWN_DTYPES:
                self.sites[site["name"]] = schema
            else:
                self.unknown.append(site["name"])
        for record in entry.get("shards", ()):
            self._record(record)
        if entry["kind"] == "merged":
            name = f"{entry['number']:08d}-{entry['table']['crc32c']:08x}.parquet"
            data = (self.folder / "ledger" / name).read_bytes()
            assert {"bytes": len(data), "crc32c": google_crc32c.value(data)} == entry["table"]
            for record in pq.read_table(self.folder / "ledger" / name).to_pylist():
                self._record(record)
        for site, runs in entry.get("released", {}).items():
            units = [unit for run in runs for unit in range(*run)]
            self.released.setdefault(site, set()).update(units)

    def _record(self, record):
        self.records[record["site"], record["unit"]] = record
        self.covered.setdefault(record["site"], set()).add(record["unit"])

    def coverage(self, site):
        """How many units there are, are committed, and can be read."""
        committed = self.covered.get(site, set())
        length = self.schema["geometry"]["unit_rows"]
        total = len({row // length for a, b in self.stretches("rows") for row in range(a, b)})
        return total, len(committed), len(committed - self.released.get(site, set()))

    # Rows.

    def stretches(self, what):
        """The ranges of rows, or of contexts, that there are."""
        edges = [0, *(edge for gap in self.schema["gaps"] for edge in gap[what]), self.schema[what]]
        return list(zip(edges[::2], edges[1::2], strict=True))

    def index(self, name, dtype, what, *, more=0):
        """One of the arrays ``tokens/*`` or ``contexts/*``: -1 in gaps.

        `more` is 1 where it has one more value than each stretch has contexts.
        """
        cut = self.schema["geometry"]
        held = [(start, stop + more) for start, stop in self.stretches(what)]
        values = np.full(held[-1][1], -1, dtype)
        length = cut["token_shard_rows"]
        for shard in sorted({at // length for a, b in held for at in range(a, b)}):
            part = self._shard(name, dtype, (), length, cut["token_chunk_rows"], shard, held)
            values[shard * length : shard * length + len(part)] = part
        return values

    def tokens(self, name, dtype="<i4"):
        return self.index(f"tokens/{name}", dtype, "rows")

    def rows(self, site, unit):
        """(n, dim): the rows of a unit, which must be committed and not released."""
        assert unit in self.covered[site] - self.released.get(site, set())
        cut, schema = self.schema["geometry"], self.sites[site]
        assert schema["compression"] == "none"
        shape, dtype = (schema["dim"],), KNOWN_DTYPES[schema["dtype"]]
        chunk_rows = chunk_rows_of(cut, schema["dim"] * np.dtype(dtype).itemsize)
        held = self.stretches("rows")
        return self._shard(f"acts/{site}", dtype, shape, cut["unit_rows"], chunk_rows, unit, held)

    def norms(self, site, unit):
        """(n,) float32, also of released units."""
        cut, held = self.schema["geometry"], self.stretches("rows")
        chunk_rows = chunk_rows_of(cut, 4)
        return self._shard(f"norms/{site}", "<f4", (), cut["unit_rows"], chunk_rows, unit, held)

    def _shard(self, name, dtype, shape, shard_rows, chunk_rows, shard, held):
        """What a shard file holds: up to the last row of its range that is of a stretch."""
        first, end = shard * shard_rows, (shard + 1) * shard_rows
        rows = max(min(stop, end) for start, stop in held if start < end and stop > first) - first
        row_bytes = np.dtype(dtype).itemsize * int(np.prod(shape))
        chunks, chunk_bytes = -(-rows // chunk_rows), chunk_rows * row_bytes
        key = f"c.{shard}" + ".0" * len(shape)
        data = (self.folder / "rows.zarr" / name / key).read_bytes()
        assert len(data) == chunks * (chunk_bytes + 4) + 16 * (shard_rows // chunk_rows) + 4
        content = b""
        for chunk in range(chunks):
            at = chunk * (chunk_bytes + 4)
            payload = data[at : at + chunk_bytes]
            (checksum,) = struct.unpack_from("<I", data, at + chunk_bytes)
            assert google_crc32c.value(payload) == checksum
            content += payload
        return np.frombuffer(content, dtype).reshape(-1, *shape)[:rows]

    # Moments.

    def moments(self, site, units, number):
        """The arrays of one file of moments; None of a total that is not there."""
        name = f"moments/{site}/{units}/{number // 1024}/{number}.safetensors"
        path = self.folder / name
        if units > 1 and not path.is_file():
            return None
        data = path.read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        about = header.pop("__metadata__")
        assert about == {
            "crc32c": f"{google_crc32c.value(body):08x}",
            "site": site,
            "splits": json.dumps(self.schema["splits"]),
            "units": f"{units * number}-{units * (number + 1)}",
        }
        types = {"I64": "<i8", "F64": "<f8"}
        return {
            name: np.frombuffer(body[slice(*of["data_offsets"])], types[of["dtype"]]).reshape(
                of["shape"]
            )
            for name, of in header.items()
        }
