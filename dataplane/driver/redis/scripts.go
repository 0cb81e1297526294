package redis

import (
	"context"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/prism-gateway/prism/shared/fault"
)

// script is a program that the server keeps under its hash.
type script struct{ text, hash string }

func newScript(text string) script { return script{text, redis.NewScript(text).Hash()} }

// call is a command that runs the script.
func (s script) call(ctx context.Context, keys []string, args ...any) redis.Cmder {
	all := make([]any, 0, 3+len(keys)+len(args))
	all = append(all, "evalsha", s.hash, len(keys))
	for _, k := range keys {
		all = append(all, k)
	}
	return redis.NewCmd(ctx, append(all, args...)...)
}

// run performs calls of a script. A server that was restarted has forgotten the script: then its text is sent.
func (q *queue) run(ctx context.Context, s script, calls []redis.Cmder) []*fault.Fault {
	faults := q.doAll(ctx, calls)
	var which []int
	var again []redis.Cmder
	for n, f := range faults {
		if f != nil && f.Unwrap() != nil && strings.HasPrefix(f.Unwrap().Error(), "NOSCRIPT") {
			args := append([]any{"eval", s.text}, calls[n].Args()[2:]...)
			calls[n] = redis.NewCmd(ctx, args...)
			which, again = append(which, n), append(again, calls[n])
		}
	}
	if len(again) > 0 {
		for n, f := range q.doAll(ctx, again) {
			faults[which[n]] = f
		}
	}
	return faults
}

// writeText defines what the scripts share. visible reads the header of an item, or all of it, and tells the version, empty
// when there is no visible item. put writes a record in the place of what visible found, drop removes it; both keep the
// index. repeated and remember are for tokens, whose keys hold the request and then the packed answer.
const writeText = `
local function visible(item, now, whole)
  local old
  if whole then old = redis.call('GET', item) or '' else old = redis.call('GETRANGE', item, 0, 36) end
  local exp, version = 0, ''
  if #old > 0 then
    if #old < 37 or string.byte(old, 1) ~= 1 then error({err = 'CORRUPT record'}) end
    exp = struct.unpack('>I8', old, 2)
    if exp == 0 or exp > now then version = string.sub(old, 18, 33) end
  end
  return old, exp, version
end
-- expiring gives an index an end when its last item that stays for ever has gone and it is short; alive ends longer ones.
local function expiring(item, index, key)
  if redis.call('PTTL', index) ~= -1 or redis.call('ZCARD', index) > ` + short + ` then return end
  local prefix, last = string.sub(item, 1, #item - #key), 0
  for _, k in ipairs(redis.call('ZRANGE', index, 0, -1)) do
    local head = redis.call('GETRANGE', prefix .. k, 0, 8)
    if #head == 9 then
      local exp = struct.unpack('>I8', head, 2)
      if exp == 0 then return end
      last = math.max(last, exp)
    end
  end
  if last == 0 then redis.call('DEL', index) else redis.call('PEXPIREAT', index, string.format('%.0f', last + ` + grace + `)) end
end
local function drop(item, index, key, old, exp)
  if #old > 0 then redis.call('DEL', item) end
  redis.call('ZREM', index, key)
  if #old > 0 and exp == 0 then expiring(item, index, key) end
end
local function put(item, index, key, old, exp, version, touch, keep, record)
  if version ~= '' then
    if touch then
      record = string.sub(record, 1, 9) .. string.sub(old, 10, 17) .. string.sub(record, 18, 33) .. string.sub(old, 34)
    elseif struct.unpack('>I8', old, 10) > struct.unpack('>I8', record, 10) then
      record = string.sub(record, 1, 9) .. string.sub(old, 10, 17) .. string.sub(record, 18)
    end
    if keep then record = string.sub(record, 1, 1) .. string.sub(old, 2, 9) .. string.sub(record, 10) end
  end
  local newexp = struct.unpack('>I8', record, 2)
  if #old == 0 then redis.call('ZADD', index, 0, key) end
  if newexp == 0 then
    redis.call('SET', item, record)
    if #old == 0 or exp ~= 0 then redis.call('PERSIST', index) end
  else
    -- The index lives as long as the longest of its items.
    local at = string.format('%.0f', newexp + ` + grace + `)
    redis.call('SET', item, record, 'PXAT', at)
    if redis.call('ZCARD', index) == 1 then
      redis.call('PEXPIREAT', index, at)
    else
      local left = redis.call('PTTL', index)
      if left >= 0 then
        local t = redis.call('TIME')
        if newexp + ` + grace + ` > t[1] * 1000 + t[2] / 1000 + left then redis.call('PEXPIREAT', index, at) end
      end
      -- Keys of items that Redis removed leave the index here: two are looked at for each that may have come.
      local prefix = string.sub(item, 1, #item - #key)
      for _, k in ipairs(redis.call('ZRANDMEMBER', index, 2)) do
        if redis.call('EXISTS', prefix .. k) == 0 then redis.call('ZREM', index, k) end
      end
      if #old > 0 and exp == 0 then expiring(item, index, key) end
    end
  end
  return string.format('%.0f', newexp)
end
local function fails(cond, want, version)
  return (cond == '1' and version ~= '') or (cond == '2' and version == '') or (cond == '3' and (version == '' or version ~= want))
end
local function repeated(token, request)
  local before = token and redis.call('GET', token)
  if not before then return nil end
  if string.sub(before, 1, 16) ~= request then return {` + reused + `} end
  local answer = cmsgpack.unpack(string.sub(before, 17))
  answer[1] = ` + duplicate + `
  return answer
end
local function remember(token, request, life, answer)
  if token then redis.call('SET', token, request .. cmsgpack.pack(answer), 'PX', life) end
  return answer
end
`

// What an answer of a script that writes begins with.
const (
	refused   = "0"
	applied   = "1"
	reused    = "2"
	duplicate = "3"
)

// writeScript does one write.
//
// KEYS: item, index, and the token's if there is one. ARGV: operation (p, d, t), condition (driver.Condition), version of the
// condition, now in milliseconds, 1 to keep the expiry, 1 to return the previous item, the item's key, the new record (its
// header only for t), the token's request and its life in milliseconds. It returns what became of it, the version that was
// there, the expiry now, the previous record, and the version now.
var writeScript = newScript(writeText + `
local item, index, token = KEYS[1], KEYS[2], KEYS[3]
local op, cond, want, now, key, record = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[7], ARGV[8]
local before = repeated(token, ARGV[9])
if before then return before end
local old, exp, version = visible(item, now, op == 't' or ARGV[6] == '1')
if fails(cond, want, version) or (op == 't' and version == '') then return {` + refused + `, version, '0', '', ''} end
local previous = ''
if version ~= '' and ARGV[6] == '1' then previous = old end
if op == 'd' then
  drop(item, index, key, old, exp)
  return remember(token, ARGV[9], ARGV[10], {` + applied + `, version, '0', previous, ''})
end
local newexp = put(item, index, key, old, exp, version, op == 't', ARGV[5] == '1', record)
return remember(token, ARGV[9], ARGV[10], {` + applied + `, version, newexp, previous, string.sub(record, 18, 33)})
`)

// incrementScript adds to a counter. Redis adds for it, in a key of its own: its numbers have 64 bits and Lua's 53.
//
// KEYS: item, index, scratch, and the token's if there is one. ARGV: delta, initial, now in milliseconds, 1 to keep the expiry,
// the item's key, the header of the new record, the token's request and its life. It returns what became of it, the version that was there, the
// expiry now, the sum, and the version now; where it is refused, the sum is N for a value that is no number and O for one too large.
var incrementScript = newScript(writeText + `
local item, index, scratch, token = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, record = tonumber(ARGV[3]), ARGV[6]
local before = repeated(token, ARGV[7])
if before then return before end
local old, exp, version = visible(item, now, true)
local number, meta = ARGV[2], string.sub(record, 34)
if version ~= '' then
  local head = 37 + struct.unpack('>I4', old, 34)
  meta, number = string.sub(old, 34, head), string.sub(old, head + 1)
  if #number > 20 or not (number == '0' or string.match(number, '^%-?[1-9]%d*$')) then return {` + refused + `, version, '0', 'N', ''} end
end
redis.call('SET', scratch, number, 'PX', 1000)
local function add(n)
  local sum = redis.pcall('INCRBY', scratch, n)
  return type(sum) ~= 'table'
end
local why
if not add('0') then why = 'N' elseif not add(ARGV[1]) then why = 'O' end
local sum = redis.call('GET', scratch)
redis.call('DEL', scratch)
if why then return {` + refused + `, version, '0', why, ''} end
local newexp = put(item, index, ARGV[5], old, exp, version, false, ARGV[4] == '1', string.sub(record, 1, 33) .. meta .. sum)
return remember(token, ARGV[7], ARGV[8], {` + applied + `, version, newexp, sum, string.sub(record, 18, 33)})
`)

// transactScript does checks and writes of one id. All that can fail is looked at before anything is written.
//
// KEYS: index, the items of the checks and of the writes in order, and the token's if there is one. ARGV: now in milliseconds,
// how many checks and how many writes, the token's request and its life, then for each check condition and version, and for
// each write operation, condition, version, 1 to keep the expiry, key, record. It returns what became of it; for a refusal
// then the place and the version there; else for each write 1 if there was an item, the expiry now, and the version now.
var transactScript = newScript(writeText + `
local index, now, checks, writes = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local token = KEYS[2 + checks + writes]
local before = repeated(token, ARGV[4])
if before then return before end
local at = {}
local function current(item)
  if at[item] == nil then
    local _, _, version = visible(item, now, false)
    at[item] = version
  end
  return at[item]
end
for n = 1, checks do
  local version = current(KEYS[1 + n])
  if fails(ARGV[4 + 2 * n], ARGV[5 + 2 * n], version) then return {` + refused + `, n - 1, version} end
end
local base = 5 + 2 * checks
for n = 1, writes do
  local item, a = KEYS[1 + checks + n], base + 6 * (n - 1)
  local version = current(item)
  if fails(ARGV[a + 2], ARGV[a + 3], version) then return {` + refused + `, checks + n - 1, version} end
  if ARGV[a + 1] == 'd' then at[item] = '' else at[item] = string.sub(ARGV[a + 6], 18, 33) end
end
local answer = {` + applied + `}
for n = 1, writes do
  local item, a = KEYS[1 + checks + n], base + 6 * (n - 1)
  local old, exp, version = visible(item, now, false)
  local newexp, now = '0', ''
  if ARGV[a + 1] == 'd' then drop(item, index, ARGV[a + 5], old, exp)
  else
    newexp = put(item, index, ARGV[a + 5], old, exp, version, false, ARGV[a + 4] == '1', ARGV[a + 6])
    now = string.sub(ARGV[a + 6], 18, 33)
  end
  answer[#answer + 1] = version ~= '' and 1 or 0
  answer[#answer + 1] = newexp
  answer[#answer + 1] = now
end
return remember(token, ARGV[4], ARGV[5], answer)
`)

// grace is how long after its expiry Redis keeps an item, in milliseconds: the clocks of proxies and Redis may differ by
// that much.
const grace = "10000"

const (
	// short is how many keys an index may have to be looked through when an item that stays for ever goes.
	short = "20"
	// walk is how many keys without an item to show one call of a script looks at, about: Redis serves nobody meanwhile.
	walk = "1000"
)

// scanScript reads a run of keys.
//
// KEYS: index. ARGV: what item keys begin with, from, to (as ZRANGEBYLEX wants them), 1 for reverse, 1 for keys only,
// limit, bytes, now in milliseconds, length of the id. It returns 1 when there are more, and 2 when it looked at as many keys
// as it may; then the last key that it looked at, for 2 only; then key and record in turn.
var scanScript = newScript(`
local index, prefix, from, to, reverse, heads = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1', ARGV[5] == '1'
local limit, bytes, now, idlen = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local out, n, size, gone, hidden, chunk = {0, ''}, 0, 0, {}, 0, math.min(limit + 1, 100)
while true do
  local keys
  if reverse then keys = redis.call('ZREVRANGEBYLEX', index, to, from, 'LIMIT', 0, chunk)
  else keys = redis.call('ZRANGEBYLEX', index, from, to, 'LIMIT', 0, chunk) end
  for _, k in ipairs(keys) do
    local record
    if heads then
      record = redis.call('GETRANGE', prefix .. k, 0, 4095)
      if #record >= 37 then
        local head = 37 + struct.unpack('>I4', record, 34)
        if head > #record then record = redis.call('GETRANGE', prefix .. k, 0, head - 1) end
        record = string.sub(record, 1, head)
      end
    else
      record = redis.call('GET', prefix .. k) or ''
    end
    if #record < 37 then
      if #record > 0 then return redis.error_reply('CORRUPT record') end
      gone[#gone + 1] = k
      hidden = hidden + 1
    else
      local exp = struct.unpack('>I8', record, 2)
      if exp == 0 or exp > now then
        if n == limit or (n > 0 and size >= bytes) then out[1] = 1 break end
        n = n + 1
        size = size + idlen + #k
        if not heads then size = size + #record - 37 - struct.unpack('>I4', record, 34) end
        out[#out + 1] = k
        out[#out + 1] = record
      else
        hidden = hidden + 1
      end
    end
  end
  if out[1] == 1 or #keys < chunk then break end
  if hidden >= ` + walk + ` then
    out[1], out[2] = 2, keys[#keys]
    break
  end
  if reverse then to = '(' .. keys[#keys] else from = '(' .. keys[#keys] end
end
for _, k in ipairs(gone) do redis.call('ZREM', index, k) end
return out
`)

// aliveScript says whether an id has a visible item, and removes the keys that it finds without one from the index.
//
// KEYS: index. ARGV: what item keys begin with, now in milliseconds, where to begin (as ZRANGEBYLEX wants it). It returns 1
// or 0; and 2 when it looked at as many keys as it may, then the last of them.
var aliveScript = newScript(`
local from, hidden, answer, gone = ARGV[3], 0, {0, ''}, {}
while answer[1] == 0 do
  local keys = redis.call('ZRANGEBYLEX', KEYS[1], from, '+', 'LIMIT', 0, 20)
  for _, k in ipairs(keys) do
    local head = redis.call('GETRANGE', ARGV[1] .. k, 0, 8)
    if #head == 0 then
      gone[#gone + 1] = k
    elseif #head == 9 then
      local exp = struct.unpack('>I8', head, 2)
      if exp == 0 or exp > tonumber(ARGV[2]) then answer = {1, ''} break end
    end
    hidden = hidden + 1
  end
  if #keys < 20 then break end
  from = '(' .. keys[#keys]
  if answer[1] == 0 and hidden >= ` + walk + ` then answer = {2, keys[#keys]} end
end
for _, k in ipairs(gone) do redis.call('ZREM', KEYS[1], k) end
return answer
`)
