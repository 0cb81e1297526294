"""Uses KeyValue of a running Prism with nothing but grpcio and code generated from protos/.

usage: keyvalue.py ADDRESS NAMESPACE

It shows, and checks, what an application does: conditions, batches, scans, counters, idempotency tokens, watches, values of
any size, errors with their reason and outcome, deadlines. It prints a line for each and ends with 1 at the first surprise.
"""

import hashlib
import os
import sys

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from prism.data.v1 import keyvalue_pb2 as kv
from prism.data.v1 import keyvalue_pb2_grpc


def error_info(error):
    """What an error says to programs: its reason, and in metadata the outcome of a write."""
    for detail in rpc_status.from_call(error).details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            return info
    raise AssertionError(f"no ErrorInfo in {error}")


def refused(call, code, reason):
    """Makes a call that is to fail, and returns the error's info."""
    try:
        call()
    except grpc.RpcError as error:
        info = error_info(error)
        assert (error.code(), info.reason) == (code, reason), f"{error.code()}, {info.reason}"
        return info
    raise AssertionError(f"no error, want {code}")


class Application:
    def __init__(self, channel, namespace):
        self.stub = keyvalue_pb2_grpc.KeyValueStub(channel)
        self.namespace = namespace

    def describe(self):
        offer = self.stub.Describe(kv.DescribeRequest(namespace=self.namespace), timeout=10, wait_for_ready=True)
        for interface in ("keyvalue.counter", "keyvalue.idempotency", "keyvalue.large", "keyvalue.watch"):
            assert interface in offer.interfaces, offer.interfaces
        return f"{len(offer.interfaces)} interfaces"

    def conditions(self):
        name = dict(namespace=self.namespace, id=b"alice", key=b"name")
        first = self.stub.Put(kv.PutRequest(**name, value=b"Alice", condition=kv.Condition(absent=True)), timeout=5)
        got = self.stub.Get(kv.GetRequest(**name), timeout=5)
        assert got.item.value == b"Alice" and got.item.version == first.version
        second = self.stub.Put(kv.PutRequest(**name, value=b"Alicia", condition=kv.Condition(version=first.version)), timeout=5)
        assert second.version != first.version
        stale = kv.PutRequest(**name, value=b"lost", condition=kv.Condition(version=first.version))
        info = refused(lambda: self.stub.Put(stale, timeout=5), grpc.StatusCode.ABORTED, "VERSION_MISMATCH")
        assert info.metadata["outcome"] == "not_applied", info
        return "a stale write was refused and not applied"

    def batches(self):
        writes = [kv.Write(put=kv.PutOp(id=b"list", key=b"%03d" % n, value=b"v%d" % n)) for n in range(100)]
        done = self.stub.BatchWrite(kv.BatchWriteRequest(namespace=self.namespace, writes=writes), timeout=10)
        assert all(r.status.code == 0 and r.version for r in done.results)
        keys, token = [], b""
        while True:
            page = self.stub.Scan(kv.ScanRequest(namespace=self.namespace, id=b"list", limit=33, page_token=token), timeout=5)
            keys += [item.key for item in page.items]
            token = page.next_page_token
            if not token:
                break
        assert keys == [b"%03d" % n for n in range(100)], keys
        return "100 items written at once and scanned in order"

    def counters(self):
        token = kv.IdempotencyToken(nonce=os.urandom(16))
        token.made_at.GetCurrentTime()
        add = kv.IncrementRequest(namespace=self.namespace, id=b"alice", key=b"visits", delta=5, token=token)
        first, again = self.stub.Increment(add, timeout=5), self.stub.Increment(add, timeout=5)
        assert (first.value, again.value, again.duplicate) == (5, 5, True), (first, again)
        return "a repeat with the same token counted once"

    def watches(self):
        watch = self.stub.Watch(kv.WatchRequest(namespace=self.namespace, id=b"watched"), timeout=20)
        assert not next(watch).events  # it is in place
        self.stub.Put(kv.PutRequest(namespace=self.namespace, id=b"watched", key=b"k", value=b"v"), timeout=5)
        self.stub.Delete(kv.DeleteRequest(namespace=self.namespace, id=b"watched", key=b"k"), timeout=5)
        kinds = []
        while len(kinds) < 2:
            kinds += [event.kind for event in next(watch).events]
        watch.cancel()
        assert kinds == [kv.WATCH_KIND_PUT, kv.WATCH_KIND_DELETE], kinds
        return "a put and a deletion were seen"

    def large_values(self):
        value = os.urandom(8 << 20)

        def parts():
            yield kv.WriteValueRequest(put=kv.PutRequest(namespace=self.namespace, id=b"alice", key=b"photo", content_type="image/jpeg"))
            for at in range(0, len(value), 1 << 20):
                yield kv.WriteValueRequest(chunk=value[at : at + (1 << 20)])
            yield kv.WriteValueRequest(sha256=hashlib.sha256(value).digest())

        self.stub.WriteValue(parts(), timeout=30)
        read = b"".join(part.chunk for part in self.stub.ReadValue(kv.ReadValueRequest(namespace=self.namespace, id=b"alice", key=b"photo"), timeout=30))
        assert read == value
        return f"{len(read) >> 20} MiB written and read"

    def errors(self):
        refused(lambda: self.stub.Get(kv.GetRequest(namespace="nobodys", id=b"a"), timeout=5), grpc.StatusCode.NOT_FOUND, "NAMESPACE")
        refused(lambda: self.stub.Get(kv.GetRequest(namespace=self.namespace), timeout=5), grpc.StatusCode.INVALID_ARGUMENT, "FIELD")
        try:
            list(self.stub.Watch(kv.WatchRequest(namespace=self.namespace, id=b"quiet"), timeout=0.3))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        else:
            raise AssertionError("a watch ended by itself")
        return "a missing namespace, a missing field and a deadline are told apart"


def main():
    address, namespace = sys.argv[1:]
    with grpc.insecure_channel(address) as channel:
        application = Application(channel, namespace)
        for step in ("describe", "conditions", "batches", "counters", "watches", "large_values", "errors"):
            print(f"{step}: {getattr(application, step)()}", flush=True)


if __name__ == "__main__":
    main()
