@0xd8a1f0c2b3947e65;
# What capnp-rpc is measured with: the same question and answer as everybody else's.

interface Fetch {
  # The request is 64 bytes, as the others' are.
  get @0 (which :UInt64, filling :Data) -> (parts :List(Data));
}
