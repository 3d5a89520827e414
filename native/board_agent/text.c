#define _GNU_SOURCE
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

void text_free(Text* text) {
  free(text->data);
  *text = (Text){0};
}

static bool reserve(Text* text, size_t more) {
  if (text->failed || more > TEXT_MAX || text->size + more + 1 > TEXT_MAX) {
    text->failed = true;
    return false;
  }
  size_t needed = text->size + more + 1;
  if (needed <= text->capacity) return true;
  size_t capacity = text->capacity ? text->capacity : 256;
  while (capacity < needed) capacity *= 2;
  char* data = realloc(text->data, capacity);
  if (data == NULL) {
    text->failed = true;
    return false;
  }
  text->data = data;
  text->capacity = capacity;
  return true;
}

void text_add_bytes(Text* text, const void* data, size_t size) {
  if (!reserve(text, size)) return;
  if (size) memcpy(text->data + text->size, data, size);
  text->size += size;
  text->data[text->size] = '\0';
}

void text_add(Text* text, const char* part) { text_add_bytes(text, part, strlen(part)); }

void text_addf(Text* text, const char* format, ...) {
  va_list args;
  va_start(args, format);
  va_list again;
  va_copy(again, args);
  int size = vsnprintf(NULL, 0, format, args);
  va_end(args);
  if (size >= 0 && reserve(text, (size_t)size)) {
    vsnprintf(text->data + text->size, (size_t)size + 1, format, again);
    text->size += (size_t)size;
  }
  va_end(again);
}

void text_add_json(Text* text, const char* value) {
  if (value == NULL) {
    text_add(text, "null");
    return;
  }
  text_add(text, "\"");
  for (const char* c = value; *c; ++c) {
    unsigned char byte = (unsigned char)*c;
    if (byte == '"' || byte == '\\') {
      text_addf(text, "\\%c", byte);
    } else if (byte < 0x20) {
      text_addf(text, "\\u%04x", byte);
    } else {
      char shown = byte < 0x7f ? (char)byte : '?';
      text_add_bytes(text, &shown, 1);
    }
  }
  text_add(text, "\"");
}

static double clock_s(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

double monotonic_s(void) { return clock_s(CLOCK_MONOTONIC); }

double unix_s(void) { return clock_s(CLOCK_REALTIME); }

bool read_file(const char* path, Text* text, size_t limit) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  bool good = true;
  char block[4096];
  while (text->size < limit) {
    size_t room = limit - text->size < sizeof block ? limit - text->size : sizeof block;
    ssize_t got = read(fd, block, room);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) good = false;
    if (got <= 0) break;
    text_add_bytes(text, block, (size_t)got);
  }
  close(fd);
  return good && !text->failed;
}

bool read_line(const char* path, char* line, size_t capacity) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  ssize_t got = read(fd, line, capacity - 1);
  close(fd);
  if (got < 0) return false;
  line[got] = '\0';
  line[strcspn(line, "\n")] = '\0';
  return true;
}

bool parse_number(const char* text, double low, double high, double* value) {
  if (*text == '\0') return false;
  for (const char* c = text; *c; ++c) {
    if ((*c < '0' || *c > '9') && *c != '.') return false;
  }
  char* end = NULL;
  double number = strtod(text, &end);
  if (*end != '\0' || !isfinite(number) || number < low || number > high) return false;
  *value = number;
  return true;
}

bool random_bytes(void* data, size_t size) {
  size_t done = 0;
  while (done < size) {
    ssize_t got = getrandom((char*)data + done, size - done, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    done += (size_t)got;
  }
  return true;
}
