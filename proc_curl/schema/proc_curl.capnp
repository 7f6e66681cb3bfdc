@0xe1b0c2a7d94f6835;
# What `proc_curl` and its worker `procCurlI` talk in: docs/proc_curl.md. One channel carries any number of requests; what
# belongs to one names it by the number of the message that began it.

struct Curl {
  union {
    # From the client.

    # Begins a request. Answered by any number of `head`, `trace`, `progress`, `body` and `room`, and then one `done` or
    # `failed`; or by one `whole`.
    request @0 :Request;
    # A further part of a request's body: the blobs of this message.
    more @1 :More;
    # The client has done with so much of a response's body, counted from its beginning.
    consumed @2 :Consumed;
    # The client wants no more of this request.
    cancel @3 :UInt64;
    # Asks for `statistics`.
    ask @4 :Void;
    # Reads or writes a cookie jar of this session; answered by `jarIs`.
    jar @5 :Jar;

    # From the worker.

    head @6 :Head;
    # The next part of a response's body: the blobs of this message.
    body @7 :Body;
    progress @8 :Progress;
    # How much of a request's body may be sent, counted from its beginning.
    room @9 :UInt64;
    done @10 :Done;
    failed @11 :Failed;
    # A response that was over before anything of it had been told. The blobs are its body.
    whole @12 :Whole;
    statistics @13 :Statistics;
    jarIs @14 :List(Text);
    trace @15 :Trace;
  }
}

struct Request {
  method @0 :Text;
  url @1 :Text;
  headers @2 :List(HeaderLine);

  body :union {
    none @3 :Void;
    inline @4 :Data;
    # The blobs of this message, one after the other.
    blobs @5 :Void;
    # Comes in `more`: so many bytes, or -1 if that is not known.
    stream @6 :Int64;
  }

  timeouts @7 :Timeouts;
  redirects @8 :Redirects;
  tls @9 :Tls;
  proxy @10 :Proxy;
  version @11 :HttpVersion;
  auth @12 :Auth;
  # The session's jar of this number; 0 is none.
  jar @13 :UInt32;
  # A `Cookie` header that is sent beside what the jar has.
  cookie @14 :Text;
  # Undo the content's encoding. `encodings` are those to ask for, all that the worker knows if empty.
  decompress @15 :Bool;
  encodings @16 :Text;
  # curl's `host:port:address[,address]`, `-host:port` and `+host:port:address`.
  resolve @17 :List(Text);
  # curl's `host1:port1:host2:port2`.
  connectTo @18 :List(Text);
  unixSocket @19 :Text;
  interface @20 :Text;
  family @21 :Family;
  # Bytes in a second; 0 is no limit.
  receiveSpeed @22 :UInt64;
  sendSpeed @23 :UInt64;
  range @24 :Text;
  resumeFrom @25 :UInt64;
  # Which protocols a request may begin with, and be redirected to.
  protocols @26 :Protocols;
  redirectProtocols @27 :Protocols;
  policy @28 :AddressPolicy;
  # Bytes of a response's body after decompression; 0 is no limit.
  bodyMax @29 :UInt64;
  retry @30 :Retry;
  # Milliseconds between two reports; 0 is none.
  progress @31 :UInt32;
  trace @32 :Bool;
  # The response is wanted as a whole: nothing is told of its body before `window` is full or it is over.
  whole @33 :Bool;
  # Bytes of a response's body that may be under way and with the client, to begin with; 0 leaves it to the worker.
  window @34 :UInt32;
  freshConnection @35 :Bool;
  keepConnection @36 :Bool = true;
  pathAsIs @37 :Bool;
  http09 @38 :Bool;
  # Milliseconds to wait for `100 Continue`.
  expectMs @39 :UInt32 = 1000;
  requestTarget @40 :Text;
  ignoreContentLength @41 :Bool;
  # Ask for If-Modified-Since this time in seconds since 1970, or since not if `ifUnmodified`; 0 is no condition.
  ifModified @42 :Int64;
  ifUnmodified @43 :Bool;
  # False leaves chunked bodies as they are.
  transferDecoding @44 :Bool = true;
  localPort @45 :UInt16;
  localPorts @46 :UInt16;
  # Milliseconds between probes of an idle connection; 0 is none.
  keepAliveMs @47 :UInt32;
}

struct HeaderLine {
  name @0 :Text;
  value @1 :Data;
  # What libcurl would send of this name is not sent.
  remove @2 :Bool;
}

struct Field {
  name @0 :Data;
  value @1 :Data;
}

enum HttpVersion {
  any @0;
  http10 @1;
  http11 @2;
  http2 @3;
  # Over TLS only, HTTP/1.1 otherwise.
  http2Tls @4;
  # Without asking first.
  http2PriorKnowledge @5;
  # In answers only.
  http09 @6;
  http3 @7;
}

enum Family { any @0; v4 @1; v6 @2; }

struct Protocols {
  http @0 :Bool = true;
  https @1 :Bool = true;
}

# Milliseconds, 0 for none of its own.
struct Timeouts {
  # From the beginning to the end, retries and redirects and all.
  total @0 :UInt64 = 300000;
  connect @1 :UInt64 = 30000;
  # From the request's end to the first byte of the answer.
  firstByte @2 :UInt64;
  # Without a byte in either direction, while nobody here holds it up.
  idle @3 :UInt64;
  # Less than so many bytes in a second for so many seconds.
  lowSpeedBytes @4 :UInt32;
  lowSpeedSeconds @5 :UInt32;
}

struct Redirects {
  # 0 follows none.
  max @0 :UInt32;
  # A POST stays one when redirected by this status.
  keepPost301 @1 :Bool;
  keepPost302 @2 :Bool;
  keepPost303 @3 :Bool;
  # Credentials go to other hosts as well.
  authElsewhere @4 :Bool;
  autoReferer @5 :Bool;
}

struct Tls {
  insecurePeer @0 :Bool;
  insecureHost @1 :Bool;
  # PEM. The worker's own list of authorities if empty.
  authorities @2 :Data;
  certificate @3 :Data;
  certificateType @4 :Text;
  key @5 :Data;
  keyType @6 :Text;
  keyPassword @7 :Text;
  min @8 :TlsVersion;
  max @9 :TlsVersion;
  # curl's `sha256//BASE64;sha256//...`.
  pinnedKey @10 :Text;
  ciphers @11 :Text;
  noSessionReuse @12 :Bool;
}

enum TlsVersion { any @0; tls10 @1; tls11 @2; tls12 @3; tls13 @4; }

struct Proxy {
  # With its scheme; none if empty. The worker never looks into its environment for one.
  url @0 :Text;
  user @1 :Text;
  password @2 :Text;
  auth @3 :Schemes;
  noProxy @4 :Text;
  tunnel @5 :Bool;
  insecure @6 :Bool;
  authorities @7 :Data;
  headers @8 :List(HeaderLine);
}

struct Schemes {
  basic @0 :Bool;
  digest @1 :Bool;
  bearer @2 :Bool;
  negotiate @3 :Bool;
  ntlm @4 :Bool;
}

struct Auth {
  user @0 :Text;
  password @1 :Text;
  # Those that may be used; Basic if none is named.
  schemes @2 :Schemes;
  bearer @3 :Text;
  # libcurl's `provider1[:provider2[:region[:service]]]`; none if empty.
  sigv4 @4 :Text;
  # Whether there are credentials at all: both may be empty.
  present @5 :Bool;
}

struct AddressPolicy {
  # Networks as `address/bits` or an address alone. An address is refused if `deny` has it, or if `allow` has something and
  # not it.
  allow @0 :List(Text);
  deny @1 :List(Text);
}

struct Retry {
  # How often it may be tried again; 0 never.
  times @0 :UInt32;
  # Milliseconds before the first, doubled for each after it up to `backoffMax`.
  backoff @1 :UInt32 = 1000;
  backoffMax @2 :UInt32 = 60000;
  ignoreRetryAfter @3 :Bool;
  # Milliseconds for all of them; 0 for no limit of its own.
  within @4 :UInt64;
}

struct More {
  request @0 :UInt64;
  # Nothing follows.
  last @1 :Bool;
  # The client cannot go on: the request is to fail.
  broken @2 :Bool;
}

struct Consumed {
  request @0 :UInt64;
  bytes @1 :UInt64;
  messages @2 :UInt64;
}

struct Jar {
  number @0 :UInt32;
  union {
    # Answered by what it has, as lines of a Netscape cookie file.
    read @1 :Void;
    # Adds these: such lines, or `Set-Cookie:` headers. Answered by what it has then.
    add @2 :List(Text);
    clear @3 :Void;
  }
}

struct Head {
  status @0 :UInt16;
  version @1 :HttpVersion;
  reason @2 :Data;
  fields @3 :List(Field);
  kind @4 :Kind;
  # What the server says the body has, before decompression; -1 if it says nothing.
  contentLength @5 :Int64 = -1;

  enum Kind {
    final @0;
    # 1xx.
    informational @1;
    # Something else follows: a redirect, or a question for credentials, or an answer that is retried.
    passing @2;
    # A proxy's answer to CONNECT.
    connect @3;
  }
}

struct Body {
  # Where in the body its first byte belongs.
  offset @0 :UInt64;
}

struct Progress {
  received @0 :UInt64;
  # -1 if that is not known.
  toReceive @1 :Int64;
  sent @2 :UInt64;
  toSend @3 :Int64;
}

struct Done {
  info @0 :Info;
  trailers @1 :List(Field);
}

struct Whole {
  heads @0 :List(Head);
  done @1 :Done;
}

struct Info {
  version @0 :HttpVersion;
  url @1 :Text;
  status @2 :UInt16;
  remoteAddress @3 :Text;
  remotePort @4 :UInt16;
  localAddress @5 :Text;
  localPort @6 :UInt16;
  redirects @7 :UInt32;
  redirectUrl @8 :Text;
  # Connections opened for it: 0 if one was there.
  connections @9 :UInt32;
  # How often it was tried again.
  retries @10 :UInt32;
  # Microseconds from the beginning of the last attempt.
  nameLookup @11 :UInt64;
  connect @12 :UInt64;
  tlsDone @13 :UInt64;
  preTransfer @14 :UInt64;
  startTransfer @15 :UInt64;
  redirecting @16 :UInt64;
  total @17 :UInt64;
  # Bytes.
  headSize @18 :UInt64;
  requestSize @19 :UInt64;
  # As they crossed the network, and as they were delivered.
  received @20 :UInt64;
  sent @21 :UInt64;
  delivered @22 :UInt64;
  contentType @23 :Text;
  # A time condition or a range left nothing to deliver.
  conditionUnmet @24 :Bool;
  connectStatus @25 :UInt16;
}

struct Failed {
  # libcurl's number and its name.
  code @0 :UInt32;
  name @1 :Text;
  stage @2 :Stage;
  # The system's number; 0 if it has none to blame.
  osError @3 :Int32;
  text @4 :Text;
  why @5 :Why;
  info @6 :Info;

  # What the number does not say.
  enum Why {
    code @0;
    # The address policy refused an address.
    policyDenied @1;
    protocolDenied @2;
    badRequest @3;
    # What was asked is not built into the worker's libcurl.
    unsupported @4;
    cancelled @5;
    # Out of shared memory, or of places for requests.
    overloaded @6;
    firstByteTimeout @7;
    idleTimeout @8;
    bodyTooLarge @9;
    # The client said that it cannot go on with the request's body.
    bodyBroken @10;
    workerFault @11;
  }
}

enum Stage {
  # Nothing was done yet.
  prepare @0;
  queue @1;
  resolve @2;
  connect @3;
  tls @4;
  send @5;
  # Everything was sent, and nothing has come.
  answer @6;
  head @7;
  body @8;
}

struct Statistics {
  active @0 :UInt32;
  queued @1 :UInt32;
  paused @2 :UInt32;
  # Since the worker began.
  started @3 :UInt64;
  done @4 :UInt64;
  failed @5 :UInt64;
  cancelled @6 :UInt64;
  received @7 :UInt64;
  sent @8 :UInt64;
  connections @9 :UInt64;
  sessions @10 :UInt32;
}

struct Trace {
  kind @0 :Kind;
  text @1 :Data;

  enum Kind { text @0; headIn @1; headOut @2; }
}
