// What runs in processes of the agent's own: in a session's, TVM's RPC server on the client's
// connection.
#ifndef BOARD_AGENT_CHILD_H_
#define BOARD_AGENT_CHILD_H_

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

// Memory that the session's process shares with the supervisor.
typedef struct {
  // Part of an answer has not been sent yet: anything else that is sent now would be taken for it.
  volatile bool unsent;
} Shared;

typedef struct {
  int socket;
  int reason_fd;       // where to say why the session ended
  const char* folder;  // the session's own
  const char* side_folder;
  uint64_t memory_limit_bytes;
  Shared* shared;
} ChildSetup;

// The first byte of what is written to `reason_fd`; a reason may follow. A process that ends without
// having written it was ended.
enum { CHILD_CLOSED = 'c', CHILD_FAILED = 'f', CHILD_LOST = 'l' };

// Makes the calling process, just forked, one that ends with its parent, alone in a process group,
// with nothing open beside the standard streams and these two.
void child_become(pid_t parent, int first_fd, int second_fd);

// Loads the libraries that lie beside the agent for this purpose, in the order of their names.
void child_load_side_libraries(const char* folder);

_Noreturn void child_run(const ChildSetup* setup);

#endif  // BOARD_AGENT_CHILD_H_
