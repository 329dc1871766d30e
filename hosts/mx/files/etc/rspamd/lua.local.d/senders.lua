-- Who has logged in sends under her own addresses: Postfix compares the envelope, this rule compares the header.
-- It does not ask which of several addresses counts: mail programs do not agree. Every one must be hers.

local HEADERS = { ['from'] = true, ['sender'] = true, ['resent-from'] = true, ['resent-sender'] = true }
local WORD = '[^%s"(),:;<>%[%]\\]*' -- what may stand on one side of an address's '@'

-- Postfix's own table: "ADDRESS LOGIN,LOGIN"; an address may be "@DOMAIN".
local owners = {}
for line in io.lines('/etc/postfix/maps/logins') do
  local address, logins = line:lower():match('^(%S+) (%S+)$')
  owners[address] = ',' .. logins .. ','
end

-- As Postfix looks it up: the address, the one without its extension, the domain.
local function owns(login, address)
  local user, domain = address:lower():match('^([^@]+)@([^@]+)$')
  if not user then
    return false
  end
  local plain = user:match('^([^+]+)%+') or user
  local found = owners[user .. '@' .. domain] or owners[plain .. '@' .. domain] or owners['@' .. domain]
  return found ~= nil and found:find(',' .. login .. ',', 1, true) ~= nil
end

-- TEXT, which may hold names and comments, has an address, and none but LOGIN's. What is still encoded may hide one.
local function is_own(login, text)
  local any = false
  for word in text:gmatch(WORD .. '@' .. WORD) do
    if not owns(login, word) then
      return false
    end
    any = true
  end
  return any and not text:find('=?', 1, true)
end

-- The name of the first header that says what it must not, or nil.
local function forged(task, login)
  local count, bad = 0, nil
  task:headers_foreach(function(name, header)
    name = name:lower():match('^%s*(.-)%s*$')
    if not HEADERS[name] then
      return
    end
    count = count + (name == 'from' and 1 or 0)
    if not is_own(login, header.decoded or '') then
      bad = bad or name
    end
  end, { full = true })
  for _, each in ipairs(task:get_from('mime') or {}) do
    if not owns(login, each.addr or '') then
      bad = bad or 'from'
    end
  end
  return bad or (count ~= 1 and 'from' or nil)
end

rspamd_config:register_symbol {
  name = 'FORGED_BY_USER',
  type = 'prefilter',
  flags = 'empty,ignore_passthrough', -- for every message, also after another rule's verdict
  callback = function(task)
    local login = task:get_user()
    local header = login and forged(task, login:lower())
    if header then
      task:set_pre_result('reject', 'The header "' .. header .. '" must name your own addresses, and no other')
      return true, header
    end
  end,
}

-- Sieve sends on what came from outside. Only what begins on this server gets its signature.
rspamd_config:register_symbol {
  name = 'SENT_ON',
  type = 'prefilter',
  callback = function(task)
    if not task:get_user() and task:get_header('Received') then
      task:disable_symbol('DKIM_SIGNED')
    end
  end,
}
