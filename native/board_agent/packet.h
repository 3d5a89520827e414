// TVM's RPC wire format, as far as a supervisor that calls no TVM function has to know it.
// Facts: tvm/rpc/base.py (handshake) and src/runtime/rpc/minrpc/rpc_reference.h (packets).
#ifndef BOARD_AGENT_PACKET_H_
#define BOARD_AGENT_PACKET_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
  RPC_MAGIC = 0xff271,
  RPC_MISMATCH = RPC_MAGIC + 2,
  TRACKER_MAGIC = 0x2f271,
  RPC_SHUTDOWN = 1,
  RPC_EXCEPTION = 5,
  RPC_RAW_STRING = 8,  // the type index of a C string
  FRAME_HEADER = 8,
};

// The largest frame that is taken from a client: above any model, below any board's memory.
#define FRAME_MAX ((uint64_t)1 << 30)

void put_u32(uint8_t* to, uint32_t value);
void put_u64(uint8_t* to, uint64_t value);
uint32_t get_u32(const uint8_t* from);
uint64_t get_u64(const uint8_t* from);

// Writes the frame that makes the client's call fail with `message`; returns its size, or 0 where
// it does not fit.
size_t exception_packet(const char* message, uint8_t* packet, size_t capacity);

// Follows the frames (u64 length, then as many bytes) that go by in a stream.
typedef struct {
  uint8_t header[FRAME_HEADER];
  size_t have;         // bytes of the header
  uint64_t remaining;  // bytes of the frame that are still to come
} Frames;

// Tells how many of `size` bytes can go by before the next header is complete or they are used up.
// Sets `announced` to the length that a header which is completed by these bytes announces, and
// returns the count up to and including that header; otherwise `announced` is 0.
size_t frames_pass(Frames* frames, const uint8_t* data, size_t size, uint64_t* announced);

// Whether the stream stands between two frames.
bool frames_at_border(const Frames* frames);

#endif  // BOARD_AGENT_PACKET_H_
