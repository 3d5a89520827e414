#define _GNU_SOURCE
#include "journal.h"

#include <stdio.h>
#include <string.h>

#include "facts.h"
#include "packet.h"

void session_label(const Session* session, char label[LABEL_MAX]) {
  if (*session->request.user) {
    snprintf(label, LABEL_MAX, "%s", session->request.user);
  } else if (*session->request.id) {
    snprintf(label, LABEL_MAX, "%s", session->request.id);
  } else {
    snprintf(label, LABEL_MAX, "session %lu", session->number);
  }
}

void journal_add(Journal* journal, const Session* session, const SessionEnd* end) {
  unsigned long place = journal->count++ % JOURNAL_SIZE;
  const Request* request = &session->request;
  if (*request->id) {
    snprintf(journal->entries[place].id, LABEL_MAX, "%s", request->id);
  } else {
    snprintf(journal->entries[place].id, LABEL_MAX, "%lu", session->number);
  }
  snprintf(journal->entries[place].user, LABEL_MAX, "%s", request->user);
  snprintf(journal->entries[place].end, END_NAME_MAX, "%s", end->end);
  snprintf(journal->entries[place].detail, DETAIL_MAX, "%s", end->detail);
  journal->entries[place].seconds = end->seconds;
  journal->free_since = unix_s();
}

static const char* or_null(const char* text) { return *text ? text : NULL; }

void journal_answer(const Journal* journal, const Session* session, const char* key, int queue,
                    const Text* opencl, Text* answer) {
  bool busy = session->pid != 0;
  char holder[LABEL_MAX];
  session_label(session, holder);
  text_add_bytes(answer, "\0\0\0\0", 4);
  text_addf(answer, "{\"agent\":\"%s\",\"state\":\"%s\",\"since\":%.3f,\"holder\":", AGENT_VERSION,
            busy ? "busy" : "free", busy ? session->began_unix : journal->free_since);
  text_add_json(answer, busy ? holder : NULL);
  text_addf(answer, ",\"queue\":%d,\"key\":", queue);
  text_add_json(answer, or_null(key));
  text_add(answer, ",\"sessions\":[");
  unsigned long first = journal->count > JOURNAL_SIZE ? journal->count - JOURNAL_SIZE : 0;
  for (unsigned long i = first; i < journal->count; ++i) {
    unsigned long place = i % JOURNAL_SIZE;
    text_add(answer, i == first ? "{\"id\":" : ",{\"id\":");
    text_add_json(answer, journal->entries[place].id);
    text_add(answer, ",\"user\":");
    text_add_json(answer, or_null(journal->entries[place].user));
    text_add(answer, ",\"end\":");
    text_add_json(answer, journal->entries[place].end);
    text_add(answer, ",\"detail\":");
    text_add_json(answer, journal->entries[place].detail);
    text_addf(answer, ",\"seconds\":%.3f}", journal->entries[place].seconds);
  }
  text_add(answer, "],\"facts\":");
  facts_json(answer);
  text_add(answer, ",\"opencl\":");
  text_add(answer, opencl->size && !opencl->failed ? opencl->data : "null");
  text_add(answer, "}");
  if (!answer->failed) put_u32((uint8_t*)answer->data, (uint32_t)(answer->size - 4));
}
