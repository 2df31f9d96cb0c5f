"""Follows a typha with stock grpcio and what protoc made of our .proto, and says what it holds at every cut.

usage: follow.py GENERATED ADDRESS
"""

import json
import queue
import sys

sys.path.insert(0, sys.argv[1])

import grpc
import sync_pb2


def main():
    channel = grpc.insecure_channel(sys.argv[2])
    up = queue.Queue()
    hello = sync_pb2.ClientHello(version=1, node="python", agent="felix", software="follow.py")
    up.put(sync_pb2.ClientMessage(hello=hello))
    held = {}
    stream = channel.stream_stream(
        "/bulrush.sync.v1.Sync/Stream",
        request_serializer=sync_pb2.ClientMessage.SerializeToString,
        response_deserializer=sync_pb2.ServerMessage.FromString,
    )
    for message in stream(iter(up.get, None)):
        kind = message.WhichOneof("message")
        if kind == "batch":
            for entry in message.batch.entries:
                if entry.deleted:
                    held.pop(entry.key, None)
                else:
                    held[entry.key] = entry.value.config
        elif kind == "cut":
            cut = message.cut
            seq = cut.token.seq if cut.HasField("token") else cut.seq
            up.put(sync_pb2.ClientMessage(ack=sync_pb2.Ack(epoch=cut.token.epoch, seq=seq)))
            print(json.dumps({"seq": seq, "held": held}), flush=True)


main()
