// What the agent was started with.
#ifndef BOARD_AGENT_OPTIONS_H_
#define BOARD_AGENT_OPTIONS_H_

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "auth.h"

#define AGENT_VERSION "1"

enum { NAME_MAX_CHARS = 64, HOST_MAX = 256, EXIT_USAGE = 2 };

typedef struct {
  char host[HOST_MAX];
  int port;
  char tracker_host[HOST_MAX];  // empty: no tracker
  int tracker_port;
  char key[NAME_MAX_CHARS + 1];  // the name under which the tracker lends this board; may be empty
  char advertise[HOST_MAX];      // empty: the tracker takes the address it sees
  AuthKey auth;
  double session_timeout_s;
  uint64_t memory_limit_bytes;
  char workdir[PATH_MAX];
  char port_file[PATH_MAX];  // empty: none
  char side_folder[PATH_MAX];
  bool facts;  // print them and end
} Options;

// Reads the command line. Returns an exit code if the program should end, else -1.
int options_parse(int argc, char** argv, Options* options);

// Takes HOST:PORT or [HOST]:PORT apart.
bool split_address(const char* text, char host[HOST_MAX], int* port);

#endif  // BOARD_AGENT_OPTIONS_H_
