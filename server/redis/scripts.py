"""All Lua that runs in Redis. Each script is one atomic step: of keyword jobs, of behaviour,
of the sidecar's lease, of clients' rates.

A job is one field of `queue:jobs` from the door until it is done or dead, and in between in exactly
one place: waiting in a stream, in the hands of a worker (pending in the stream's group) or in
`queue:later`. Whoever acknowledges a stream entry first has done the job; what comes later from a
second worker changes no counter. `place` is 1 for the live stream, 2 for the warm one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Script:
    """A text and the digest by which Redis knows it."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


DOOR = Script("""
-- Let jobs in: once each, at most `limit` at a time, none whose answer is stored.
-- A live job that waits among the warm ones moves to the front.
-- KEYS jobs, live, warm, then the store key of each job ('' for none)
-- ARGV group, place, limit, then id and payload of each job
-- -> for each job: queued | duplicate | stored | full
local group, place, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local stream = KEYS[1 + place]
local depth = redis.call('HLEN', KEYS[1])
local answers = {}
for i = 1, (#ARGV - 3) / 2 do
  local id, payload = ARGV[2 + 2 * i], ARGV[3 + 2 * i]
  local where = redis.call('HGET', KEYS[1], id)
  if where then
    answers[i] = 'duplicate'
    if place == 1 and string.sub(where, 1, 2) == '2:' then
      local entry = string.sub(where, 3)
      local held = redis.pcall('XPENDING', KEYS[3], group, entry, entry, 1)
      if (held.err or #held == 0) and redis.call('XDEL', KEYS[3], entry) == 1 then
        entry = redis.call('XADD', KEYS[2], '*', 'job', payload)
        redis.call('HSET', KEYS[1], id, '1:' .. entry)
      end
    end
  elseif KEYS[3 + i] ~= '' and redis.call('EXISTS', KEYS[3 + i]) == 1 then
    answers[i] = 'stored'
  elseif depth >= limit then
    answers[i] = 'full'
  else
    local entry = redis.call('XADD', stream, '*', 'job', payload)
    redis.call('HSET', KEYS[1], id, place .. ':' .. entry)
    depth = depth + 1
    answers[i] = 'queued'
  end
end
return answers
""")

TAKE = Script("""
-- Hand jobs to a worker: those whose wait is over join the streams; then those that a dead worker
-- left (with `reclaim`), then live ones, then warm ones.
-- One that was handed out `suspect` times is handed out alone: it may be what kills its workers.
-- KEYS live, warm, jobs, later
-- ARGV group, consumer, count, reclaim, lease in ms, suspect
-- -> for each job: place, entry, payload, deliveries
local group, consumer, count = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lease, suspect = tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, payload in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, count)) do
  local job = cjson.decode(payload)
  local place = job.priority == 'live' and 1 or 2
  local entry = redis.call('XADD', KEYS[place], '*', 'job', payload)
  redis.call('HSET', KEYS[3], job.id, place .. ':' .. entry)
  redis.call('ZREM', KEYS[4], payload)
end
local found = {}
for place = 1, 2 do
  local left = {}
  if ARGV[4] == '1' and #found < count then
    left = redis.pcall('XPENDING', KEYS[place], group, 'IDLE', lease, '-', '+', count - #found)
    if left.err then left = {} end
  end
  for _, held in ipairs(left) do
    local deliveries = held[4]
    if deliveries < suspect or #found == 0 then
      for _, one in ipairs(redis.call('XCLAIM', KEYS[place], group, consumer, lease, held[1])) do
        found[#found + 1] = {place, one[1], one[2][2], deliveries + 1}
      end
      if deliveries >= suspect and #found > 0 then return found end
    end
  end
end
for place = 1, 2 do
  if #found < count then
    local read = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count - #found,
      'STREAMS', KEYS[place], '>')
    if read and read.err then
      redis.call('XGROUP', 'CREATE', KEYS[place], group, '0', 'MKSTREAM')
      read = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count - #found,
        'STREAMS', KEYS[place], '>')
    end
    if read then
      for _, one in ipairs(read[1][2]) do
        found[#found + 1] = {place, one[1], one[2][2], 1}
      end
    end
  end
end
return found
""")

HOLD = Script("""
-- A worker is still at these jobs: their lease begins anew, unless they were given to another.
-- KEYS live, warm   ARGV group, consumer, then place and entry of each job
-- -> how many it still holds
local held = 0
for i = 3, #ARGV, 2 do
  local stream, entry = KEYS[tonumber(ARGV[i])], ARGV[i + 1]
  local own = redis.pcall('XPENDING', stream, ARGV[1], entry, entry, 1, ARGV[2])
  if not own.err and #own == 1 then
    redis.call('XCLAIM', stream, ARGV[1], ARGV[2], 0, entry, 'JUSTID')
    held = held + 1
  end
end
return held
""")

FINISH = Script("""
-- Store answers and be done with their jobs. What is stored twice is the same; `made` gets it once.
-- KEYS live, warm, jobs, made, then the store key of each job
-- ARGV group, longest `made`, then place, entry, id, value, lifetime in s and, for `made`, user
-- -> for each job: 1 when this call ended it, 0 when it was done before
local answers = {}
for i = 1, (#ARGV - 2) / 6 do
  local at = 6 * i - 3
  local stream, entry, value = KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 3]
  redis.call('SET', KEYS[4 + i], value, 'EX', ARGV[at + 4])
  answers[i] = redis.pcall('XACK', stream, ARGV[1], entry)
  if answers[i] == 1 then
    redis.call('XDEL', stream, entry)
    redis.call('HDEL', KEYS[3], ARGV[at + 2])
    redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[2], '*', 'keywords', value, 'user',
      ARGV[at + 5])
  else
    answers[i] = 0
  end
end
return answers
""")

POSTPONE = Script("""
-- Try jobs again later.
-- KEYS live, warm, jobs, later   ARGV group, then place, entry, id, payload and wait in ms of each
-- -> for each job: 1 when this call moved it, 0 when it was done before
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = {}
for i = 1, (#ARGV - 1) / 5 do
  local at = 5 * i - 3
  local stream, entry = KEYS[tonumber(ARGV[at])], ARGV[at + 1]
  answers[i] = redis.call('XACK', stream, ARGV[1], entry)
  if answers[i] == 1 then
    redis.call('XDEL', stream, entry)
    redis.call('ZADD', KEYS[4], now + ARGV[at + 4], ARGV[at + 3])
    redis.call('HSET', KEYS[3], ARGV[at + 2], 'later')
  end
end
return answers
""")

BURY = Script("""
-- Jobs that cannot be done become dead letters; the store says so for a while, so that searches do
-- not bring them back.
-- KEYS live, warm, jobs, dead, then the store key of each job
-- ARGV group, longest `dead`, then place, entry, id, payload, reason, value and lifetime in s
-- -> for each job: 1 when this call buried it, 0 when it was done before
local answers = {}
for i = 1, (#ARGV - 2) / 7 do
  local at = 7 * i - 4
  local stream, entry = KEYS[tonumber(ARGV[at])], ARGV[at + 1]
  answers[i] = redis.call('XACK', stream, ARGV[1], entry)
  if answers[i] == 1 then
    redis.call('XDEL', stream, entry)
    redis.call('HDEL', KEYS[3], ARGV[at + 2])
    redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[2], '*', 'job', ARGV[at + 3],
      'reason', ARGV[at + 4])
    redis.call('SET', KEYS[4 + i], ARGV[at + 5], 'NX', 'EX', ARGV[at + 6])
  end
end
return answers
""")

REPLAY = Script("""
-- Dead letters become jobs again. Past `limit` they stay dead letters.
-- KEYS jobs, warm, dead, then the store key of each letter
-- ARGV limit, then dead entry, id and payload of each
-- -> for each letter: queued | duplicate | full | gone
local answers = {}
for i = 1, (#ARGV - 1) / 3 do
  local letter, id, payload = ARGV[3 * i - 1], ARGV[3 * i], ARGV[3 * i + 1]
  if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[1]) then
    answers[i] = 'full'
  elseif redis.call('XDEL', KEYS[3], letter) == 0 then
    answers[i] = 'gone'
  else
    redis.call('DEL', KEYS[3 + i])
    if redis.call('HEXISTS', KEYS[1], id) == 1 then
      answers[i] = 'duplicate'
    else
      local entry = redis.call('XADD', KEYS[2], '*', 'job', payload)
      redis.call('HSET', KEYS[1], id, '2:' .. entry)
      answers[i] = 'queued'
    end
  end
end
return answers
""")

STATUS = Script("""
-- The queue in numbers.
-- KEYS live, warm, jobs, later, dead, made   ARGV group
-- -> now in ms; jobs, postponed, dead letters, made; then of live and warm each: entries, in hand,
--    when the oldest came in ms (0: none)
local time = redis.call('TIME')
local answer = {
  time[1] * 1000 + math.floor(time[2] / 1000),
  redis.call('HLEN', KEYS[3]), redis.call('ZCARD', KEYS[4]),
  redis.call('XLEN', KEYS[5]), redis.call('XLEN', KEYS[6])
}
for place = 1, 2 do
  local held = redis.pcall('XPENDING', KEYS[place], ARGV[1])
  local first = redis.call('XRANGE', KEYS[place], '-', '+', 'COUNT', 1)
  answer[#answer + 1] = redis.call('XLEN', KEYS[place])
  answer[#answer + 1] = held.err and 0 or held[1]
  answer[#answer + 1] = first[1] and tonumber(string.match(first[1][1], '^%d+')) or 0
end
return answer
""")

TAKE_EVENTS = Script("""
-- Take events, each once; and keep what their users touched last.
-- The first write fails when the memory is full: then nothing at all was taken.
-- KEYS events, then of each event its seen key and its user's recent key ('' for none)
-- ARGV longest log, how long entries are kept in ms, lifetime in s of seen keys and of recent ones,
--      longest recent, then of each event its payload, time and item id
-- -> for each event: 1 taken, 0 known already
local answers = {}
for i = 1, (#KEYS - 1) / 2 do
  local seen, recent = KEYS[2 * i], KEYS[2 * i + 1]
  local payload, time, item = ARGV[3 * i + 3], ARGV[3 * i + 4], ARGV[3 * i + 5]
  if redis.call('SET', seen, '1', 'NX', 'EX', ARGV[3]) then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'json', payload)
    if recent ~= '' then
      redis.call('ZADD', recent, 'GT', time, item)
      redis.call('ZREMRANGEBYRANK', recent, 0, -(tonumber(ARGV[5]) + 1))
      redis.call('EXPIRE', recent, ARGV[4])
    end
    answers[i] = 1
  else
    answers[i] = 0
  end
end
local now = redis.call('TIME')
local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(ARGV[2])
redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', oldest))
return answers
""")

LOG_EXPOSURES = Script("""
-- Write a batch of exposures once, however often it is sent.
-- KEYS exposures, batch
-- ARGV longest log, how long entries are kept in ms, lifetime in s of the batch key, then payloads
-- -> how many were written; 0 when the batch was written before
if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[3]) then return 0 end
for i = 4, #ARGV do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'json', ARGV[i])
end
local now = redis.call('TIME')
local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(ARGV[2])
redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', oldest))
return #ARGV - 3
""")

RENEW_LEASE = Script("""
-- A lease begins anew, unless it ended or is another's.
-- KEYS lease   ARGV token, lease in ms
-- -> 1 renewed, 0 not held
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
""")

END_LEASE = Script("""
-- Give a lease back, if it is held still.
-- KEYS lease   ARGV token
-- -> 1 given back, 0 not held
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
""")

TAKE_TOKENS = Script("""
-- Take tokens of a client's bucket, as many as there are of those wanted. By Redis's clock.
-- KEYS bucket   ARGV tokens per second, most tokens, wanted
-- -> how many were taken; when none, the ms until there is one
local rate, most, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local held = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = most
if held[1] and held[2] then
  tokens = math.min(most, tonumber(held[1]) + math.max(0, now - tonumber(held[2])) * rate)
end
local taken = math.min(wanted, math.floor(tokens))
tokens = tokens - taken
redis.call('HSET', KEYS[1], 'tokens', string.format('%.9f', tokens),
  'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil((most - tokens) / rate * 1000) + 1000)
return {taken, taken > 0 and 0 or math.max(1, math.ceil((1 - tokens) / rate * 1000))}
""")
