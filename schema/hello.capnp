@0xb7a1d7c3e5f08d21;
# The conversation of the `hello` example and of the library's documentation.

struct Hello {
  union {
    greet @0 :Text;   # The caller's name.
    answer @1 :Text;  # The greeting.
  }
}
