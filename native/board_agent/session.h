// The one session that runs: its process, its limits, and the reason of its end.
#ifndef BOARD_AGENT_SESSION_H_
#define BOARD_AGENT_SESSION_H_

#include <sys/types.h>

#include "child.h"
#include "folder.h"
#include "options.h"
#include "peer.h"

enum { DETAIL_MAX = 640, END_NAME_MAX = 16 };

typedef enum {
  END_BY_ITSELF,
  END_TIME,
  END_MEMORY,
  END_CLIENT_GONE,
  END_STOPPED,
} Verdict;  // why the supervisor ended it

typedef struct {
  pid_t pid;  // 0: no session runs
  int fd;     // the client's connection
  int reason_fd;
  unsigned long number;
  Request request;
  bool by_tracker;
  double began, began_unix, limit_s, gone_since;
  uint64_t memory_limit_bytes, peak_bytes;
  Verdict verdict;
  char folder[PATH_MAX];
  Shared* shared;
} Session;

// How a session ended, in the words of the status query.
typedef struct {
  char end[END_NAME_MAX];  // closed, signal, time-limit, memory-limit, exit, killed
  char detail[DETAIL_MAX];
  char message[DETAIL_MAX + 256];  // for the client; empty where there is nothing to tell
  double seconds;
} SessionEnd;

// Starts a session on the connection `fd`. On failure writes the reason and leaves nothing behind.
bool session_start(Session* session, const Options* options, const WorkFolder* work, int fd,
                   const Request* request, char* reason, size_t capacity);

// Enforces the limits; `client_gone` says that the client has closed its side. Returns true, with
// `end` filled in, once the session has ended and nothing of it is left. The connection stays open.
bool session_check(Session* session, bool client_gone, SessionEnd* end);

// Ends the session now; the next `session_check` returns true.
void session_kill(Session* session, Verdict verdict);

#endif  // BOARD_AGENT_SESSION_H_
