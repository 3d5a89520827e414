#define _GNU_SOURCE
#include "tracker.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "facts.h"
#include "packet.h"

enum { ANSWER_MAX = 1 << 20, CODE_PUT = 3, CODE_UPDATE_INFO = 5, CODE_PENDING = 7 };

static const double kAnswerS = 10;    // a tracker that is silent for so long is given up
static const double kLookS = 2;       // between two looks at what has been lent
static const double kUnclaimedS = 6;  // after which a match key that was told is replaced
static const double kFirstBackoffS = 0.25;
static const double kLastBackoffS = 1.5;

static void new_match_key(Tracker* tracker, const Options* options) {
  uint8_t noise[16];
  if (!random_bytes(noise, sizeof noise)) return;  // the old one stays
  int size = snprintf(tracker->match_key, sizeof tracker->match_key, "%s:", options->key);
  for (size_t i = 0; i < sizeof noise; ++i) {
    snprintf(tracker->match_key + size + 2 * i, 3, "%02x", noise[i]);
  }
  tracker->offered = false;
  tracker->claimed = false;
  tracker->missing_since = 0;
}

void tracker_open(Tracker* tracker, const Options* options) {
  *tracker = (Tracker){.fd = -1, .backoff_s = kFirstBackoffS};
  if (!*options->tracker_host) return;
  tracker->state = TRACKER_APART;
  new_match_key(tracker, options);
}

void tracker_close(Tracker* tracker) {
  if (tracker->fd >= 0) close(tracker->fd);
  text_free(&tracker->in);
  text_free(&tracker->out);
  tracker->fd = -1;
}

bool tracker_claim(Tracker* tracker, const char* key) {
  if (tracker->state == TRACKER_OFF || tracker->claimed) return false;
  if (strcmp(key, tracker->match_key) != 0) return false;
  tracker->claimed = true;
  return true;
}

void tracker_offer_again(Tracker* tracker) {
  tracker->match_key[0] = '\0';  // replaced at the next step
  tracker->claimed = false;
  tracker->offered = false;
}

short tracker_interest(const Tracker* tracker) {
  if (tracker->fd < 0) return 0;
  if (tracker->state == TRACKER_CONNECTING) return POLLOUT;
  return tracker->sent < tracker->out.size ? POLLIN | POLLOUT : POLLIN;
}

static void fall_back(Tracker* tracker, const Options* options, const char* reason) {
  if (!tracker->reported) {
    fprintf(stderr, "agent: tracker %s:%d: %s; trying again\n", options->tracker_host,
            options->tracker_port, reason);
    tracker->reported = true;
  }
  tracker_close(tracker);
  tracker->sent = 0;
  tracker->state = TRACKER_APART;
  tracker->offered = false;
  tracker->missing_since = 0;
  tracker->deadline = monotonic_s() + tracker->backoff_s;
  tracker->backoff_s *= 2;
  if (tracker->backoff_s > kLastBackoffS) tracker->backoff_s = kLastBackoffS;
}

static bool look_up(Tracker* tracker, const Options* options) {
  char port[8];
  struct addrinfo* found = NULL;
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
  snprintf(port, sizeof port, "%d", options->tracker_port);
  if (getaddrinfo(options->tracker_host, port, &hints, &found) != 0 || found == NULL) return false;
  memcpy(&tracker->address, found->ai_addr, found->ai_addrlen);
  tracker->address_size = found->ai_addrlen;
  freeaddrinfo(found);
  return true;
}

static void send_first(Tracker* tracker, const Options* options) {
  uint8_t magic[4];
  if (options->auth.size) {
    random_bytes(tracker->nonce, NONCE_SIZE);
    text_add_bytes(&tracker->out, AUTH_MAGIC, MAGIC_SIZE);
    text_add_bytes(&tracker->out, tracker->nonce, NONCE_SIZE);
    tracker->state = TRACKER_NONCE;
  } else {
    put_u32(magic, TRACKER_MAGIC);
    text_add_bytes(&tracker->out, magic, sizeof magic);
    tracker->state = TRACKER_MAGIC_SENT;
  }
  tracker->deadline = monotonic_s() + kAnswerS;
}

static void start_connecting(Tracker* tracker, const Options* options, bool idle) {
  if (idle || tracker->address_size == 0) {
    if (!look_up(tracker, options)) {
      fall_back(tracker, options, "its name is not known");
      return;
    }
  }
  int family = tracker->address.ss_family;
  tracker->fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (tracker->fd < 0) {
    fall_back(tracker, options, strerror(errno));
    return;
  }
  int yes = 1;
  setsockopt(tracker->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  tracker->state = TRACKER_CONNECTING;
  tracker->deadline = monotonic_s() + kAnswerS;
  int code = connect(tracker->fd, (struct sockaddr*)&tracker->address, tracker->address_size);
  if (code != 0 && errno != EINPROGRESS) fall_back(tracker, options, strerror(errno));
}

static void ask(Tracker* tracker, TrackerRequest request, const Text* json) {
  uint8_t length[4];
  put_u32(length, (uint32_t)json->size);
  tracker->out.size = 0;
  tracker->sent = 0;
  text_add_bytes(&tracker->out, length, sizeof length);
  text_add_bytes(&tracker->out, json->data, json->size);
  if (json->failed) tracker->out.failed = true;
  tracker->state = TRACKER_ASKED;
  tracker->asked = request;
  tracker->deadline = monotonic_s() + kAnswerS;
}

static void ask_info(Tracker* tracker, const Options* options, int port) {
  Text json = {0};
  text_addf(&json, "[%d,{\"key\":\"server:%s\",\"addr\":[", CODE_UPDATE_INFO, options->key);
  text_add_json(&json, *options->advertise ? options->advertise : NULL);
  text_addf(&json, ",%d],\"agent\":1,\"facts\":", port);
  facts_json(&json);
  text_add(&json, "}]");
  ask(tracker, ASKED_INFO, &json);
  text_free(&json);
}

static void ask_put(Tracker* tracker, const Options* options, int port) {
  Text json = {0};
  text_addf(&json, "[%d,\"%s\",[%d,\"%s\"],", CODE_PUT, options->key, port, tracker->match_key);
  text_add_json(&json, *options->advertise ? options->advertise : NULL);
  text_add(&json, "]");
  ask(tracker, ASKED_PUT, &json);
  text_free(&json);
}

static void ask_pending(Tracker* tracker) {
  Text json = {0};
  text_addf(&json, "[%d]", CODE_PENDING);
  ask(tracker, ASKED_PENDING, &json);
  text_free(&json);
}

// Looks whether a match key that a client was told is left lying.
static void look_at_pending(Tracker* tracker, const char* answer) {
  char quoted[MATCH_KEY_MAX + 3];
  snprintf(quoted, sizeof quoted, "\"%s\"", tracker->match_key);
  double now = monotonic_s();
  if (tracker->claimed || !tracker->offered || strstr(answer, quoted)) {
    tracker->missing_since = 0;
  } else if (tracker->missing_since == 0) {
    tracker->missing_since = now;
  } else if (now - tracker->missing_since > kUnclaimedS) {
    tracker_offer_again(tracker);
  }
}

// Handles the JSON answer to a request; false if it is not one that can be.
static bool take_answer(Tracker* tracker, const char* answer) {
  if (tracker->asked == ASKED_PENDING) {
    if (answer[0] != '[') return false;
    look_at_pending(tracker, answer);
  } else {
    if (strcmp(answer, "0") != 0) return false;
    if (tracker->asked == ASKED_PUT) {
      tracker->offered = true;
      tracker->backoff_s = kFirstBackoffS;
      tracker->reported = false;
    }
  }
  tracker->state = TRACKER_READY;
  tracker->next_look = monotonic_s() + kLookS;
  return true;
}

static bool take_nonce(Tracker* tracker, const Options* options) {
  const uint8_t* in = (const uint8_t*)tracker->in.data;
  const uint8_t* nonce_s = in + MAGIC_SIZE;
  uint8_t proof[SHA256_SIZE];
  auth_proof(&options->auth, "server", tracker->nonce, nonce_s, proof);
  if (memcmp(in, AUTH_MAGIC, MAGIC_SIZE) != 0 ||
      !equal_in_constant_time(proof, nonce_s + NONCE_SIZE, SHA256_SIZE)) {
    return false;
  }
  auth_proof(&options->auth, "client", tracker->nonce, nonce_s, proof);
  text_add_bytes(&tracker->out, proof, sizeof proof);
  tracker->state = TRACKER_WELCOME;
  return true;
}

// How many bytes the part that is expected next has; 0 where nothing is expected, -1 for nonsense.
static long expected(const Tracker* tracker) {
  switch (tracker->state) {
    case TRACKER_NONCE:
      return MAGIC_SIZE + NONCE_SIZE + SHA256_SIZE;
    case TRACKER_WELCOME:
      return 1;
    case TRACKER_MAGIC_SENT:
      return 4;
    case TRACKER_ASKED:
      if (tracker->in.size < 4) return 4;
      long size = (int32_t)get_u32((const uint8_t*)tracker->in.data);
      return size > 0 && size <= ANSWER_MAX ? size + 4 : -1;
    default:
      return 0;
  }
}

static bool take_part(Tracker* tracker, const Options* options) {
  uint8_t magic[4];
  switch (tracker->state) {
    case TRACKER_NONCE:
      return take_nonce(tracker, options);
    case TRACKER_WELCOME:
      if (tracker->in.data[0] != 0) return false;
      put_u32(magic, TRACKER_MAGIC);
      text_add_bytes(&tracker->out, magic, sizeof magic);
      tracker->state = TRACKER_MAGIC_SENT;
      return true;
    case TRACKER_MAGIC_SENT:
      if (get_u32((const uint8_t*)tracker->in.data) != TRACKER_MAGIC) return false;
      tracker->state = TRACKER_READY;
      tracker->next_look = 0;
      return true;
    default:
      return take_answer(tracker, tracker->in.data + 4);
  }
}

// Reads what has come; returns what is wrong, or NULL.
static const char* receive(Tracker* tracker, const Options* options) {
  for (int i = 0; i < 64; ++i) {
    long need = expected(tracker);
    if (need < 0) return "it sent a frame of an impossible size";
    char block[4096];
    size_t missing = need ? (size_t)need - tracker->in.size : 1;
    ssize_t got = recv(tracker->fd, block, missing < sizeof block ? missing : sizeof block,
                       MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return NULL;
    if (got < 0) return strerror(errno);
    if (got == 0) {
      bool proving = tracker->state == TRACKER_NONCE || tracker->state == TRACKER_WELCOME;
      return proving ? "it does not know our key" : "it closed the connection";
    }
    if (need == 0) return "it sent what nobody asked for";
    text_add_bytes(&tracker->in, block, (size_t)got);
    if (tracker->in.failed) return "no memory";
    need = expected(tracker);
    if (need < 0 || tracker->in.size < (size_t)need) continue;
    tracker->deadline = monotonic_s() + kAnswerS;
    bool good = take_part(tracker, options);
    tracker->in.size = 0;
    if (!good) return "it does not answer as a tracker does, or does not know our key";
  }
  return NULL;
}

static const char* transmit(Tracker* tracker) {
  if (tracker->out.failed) return "no memory";
  while (tracker->sent < tracker->out.size) {
    ssize_t sent = send(tracker->fd, tracker->out.data + tracker->sent,
                        tracker->out.size - tracker->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return errno == EAGAIN ? NULL : strerror(errno);
    tracker->sent += (size_t)sent;
  }
  tracker->out.size = 0;
  tracker->sent = 0;
  return NULL;
}

static const char* finish_connecting(Tracker* tracker, const Options* options) {
  int code = 0;
  socklen_t size = sizeof code;
  if (getsockopt(tracker->fd, SOL_SOCKET, SO_ERROR, &code, &size) != 0) code = errno;
  if (code != 0) return strerror(code);
  send_first(tracker, options);
  return NULL;
}

static void ask_what_is_due(Tracker* tracker, const Options* options, int port) {
  bool fresh = tracker->next_look == 0;
  if (fresh) {
    ask_info(tracker, options, port);
  } else if (!tracker->offered && !tracker->claimed) {
    ask_put(tracker, options, port);
  } else if (monotonic_s() >= tracker->next_look) {
    ask_pending(tracker);
  }
}

void tracker_step(Tracker* tracker, const Options* options, int port, bool idle, short events) {
  if (tracker->state == TRACKER_OFF) return;
  if (!*tracker->match_key) new_match_key(tracker, options);
  double now = monotonic_s();
  if (tracker->state == TRACKER_APART) {
    if (now >= tracker->deadline) start_connecting(tracker, options, idle);
    return;
  }
  const char* problem = NULL;
  if (tracker->state == TRACKER_CONNECTING) {
    if (events) problem = finish_connecting(tracker, options);
  } else if (events & (POLLIN | POLLHUP | POLLERR)) {
    problem = receive(tracker, options);
  }
  if (!problem && tracker->state == TRACKER_READY) ask_what_is_due(tracker, options, port);
  if (!problem && tracker->state != TRACKER_CONNECTING) problem = transmit(tracker);
  if (!problem && tracker->state != TRACKER_READY && now > tracker->deadline) {
    problem = "it does not answer";
  }
  if (problem) fall_back(tracker, options, problem);
}
