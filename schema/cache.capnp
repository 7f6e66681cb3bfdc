@0xc3f5a4e2908b1d67;
# A cache of files: what perf_demo and the `cache` example talk in.

struct Cache {
  union {
    getCacheReq @0 :GetCacheReq;
    getCacheRsp @1 :GetCacheRsp;
    # The file is not in the cache.
    notFound @2 :Text;
  }
}

struct GetCacheReq {
  fileName @0 :Text;
}

struct GetCacheRsp {
  # A file in pieces, each sized at the sender's discretion, since one Data holds less than 2^29 bytes.
  fileParts @0 :List(FilePart);
}

struct FilePart {
  data @0 :Data;
  # What the receiver must find: the length of `data`, and its XXH3 hash.
  size @1 :UInt64;
  hash @2 :UInt64;
}
