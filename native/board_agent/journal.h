// How the last sessions ended, and the answer to the status query.
#ifndef BOARD_AGENT_JOURNAL_H_
#define BOARD_AGENT_JOURNAL_H_

#include "session.h"

enum { JOURNAL_SIZE = 32 };

typedef struct {
  struct {
    char id[LABEL_MAX];
    char user[LABEL_MAX];
    char end[END_NAME_MAX];
    char detail[DETAIL_MAX];
    double seconds;
  } entries[JOURNAL_SIZE];
  unsigned long count;  // of all sessions so far; the last JOURNAL_SIZE are kept
  double free_since;    // seconds since 1970
} Journal;

void journal_add(Journal* journal, const Session* session, const SessionEnd* end);

// Writes u32 length and JSON: state, holder, queue, the last sessions, facts, and what was found of
// OpenCL, JSON too, or empty.
void journal_answer(const Journal* journal, const Session* session, const char* key, int queue,
                    const Text* opencl, Text* answer);

// The name a session goes by: its user, its own name, or its number.
void session_label(const Session* session, char label[LABEL_MAX]);

#endif  // BOARD_AGENT_JOURNAL_H_
