#define _GNU_SOURCE
#include "packet.h"

#include <string.h>

void put_u32(uint8_t* to, uint32_t value) {
  for (int i = 0; i < 4; ++i) to[i] = (uint8_t)(value >> (8 * i));
}

void put_u64(uint8_t* to, uint64_t value) {
  for (int i = 0; i < 8; ++i) to[i] = (uint8_t)(value >> (8 * i));
}

uint32_t get_u32(const uint8_t* from) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= (uint32_t)from[i] << (8 * i);
  return value;
}

uint64_t get_u64(const uint8_t* from) {
  return get_u32(from) | (uint64_t)get_u32(from + 4) << 32;
}

size_t exception_packet(const char* message, uint8_t* packet, size_t capacity) {
  size_t length = strlen(message);
  size_t head = 4 + 4 + 4 + 8;  // code, number of arguments, type of the argument, its length
  if (FRAME_HEADER + head + length > capacity) return 0;
  put_u64(packet, head + length);
  put_u32(packet + 8, RPC_EXCEPTION);
  put_u32(packet + 12, 1);
  put_u32(packet + 16, RPC_RAW_STRING);
  put_u64(packet + 20, length);
  memcpy(packet + 28, message, length);
  return FRAME_HEADER + head + length;
}

size_t frames_pass(Frames* frames, const uint8_t* data, size_t size, uint64_t* announced) {
  *announced = 0;
  size_t passed = 0;
  while (passed < size) {
    if (frames->remaining) {
      uint64_t left = size - passed;
      uint64_t step = frames->remaining < left ? frames->remaining : left;
      frames->remaining -= step;
      passed += (size_t)step;
      continue;
    }
    frames->header[frames->have++] = data[passed++];
    if (frames->have == FRAME_HEADER) {
      frames->have = 0;
      frames->remaining = *announced = get_u64(frames->header);
      return passed;
    }
  }
  return passed;
}

bool frames_at_border(const Frames* frames) { return !frames->have && !frames->remaining; }
