// Downloads one file over HTTPS from a GitHub release. GitHub redirects to another
// host with a signed query, which must not be shown.
'use strict';

// MAX_BYTES bounds a program. A test keeps the client below 12 MB.
const MAX_BYTES = 64 << 20;

const ATTEMPTS = 3;
const ATTEMPT_MS = 60_000;
const REDIRECTS = 5;

// download returns the bytes at url. It retries if that may help: after no answer, a
// broken answer, 408, 429 or 5xx.
async function download(url) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await once(new URL(url), AbortSignal.timeout(ATTEMPT_MS));
    } catch (err) {
      if (err.final || attempt === ATTEMPTS) {
        throw new Error(`download ${url}: ${why(err)}${attempt > 1 ? ` (${attempt} attempts)` : ''}. ` +
          'The action reaches the release\'s host directly; with "version: path" an earlier step may bring mayfly');
      }
      await new Promise((resolve) => { setTimeout(resolve, 500 * 3 ** (attempt - 1)); });
    }
  }
}

// why returns the cause, which fetch nests one or two levels deep.
function why(err) {
  if (err.name === 'TimeoutError') return `not complete within ${ATTEMPT_MS / 1000} s`;
  for (let e = err; e; e = e.cause) if (e.cause === undefined) return e.message || e.code || String(e);
  return err.message;
}

function final(message) {
  return Object.assign(new Error(message), { final: true });
}

async function once(url, signal) {
  const plain = url.protocol === 'http:';
  for (let hop = 0; hop <= REDIRECTS; hop += 1) {
    secure(url, plain);
    const answer = await fetch(url, { signal, redirect: 'manual' });
    if (answer.status < 300 || answer.status > 399) return body(answer);
    await answer.body?.cancel();
    const to = answer.headers.get('location');
    if (!to || !URL.canParse(to, url)) throw final(`${url.host} answers ${answer.status} without a place to go on to`);
    url = new URL(to, url);
  }
  throw final(`more than ${REDIRECTS} redirects`);
}

// secure accepts https. It accepts http on loopback, for a mirror or a test, only if the
// first URL was http too.
function secure(url, plain) {
  if (url.protocol === 'https:') return;
  if (plain && url.protocol === 'http:' && ['127.0.0.1', '[::1]', 'localhost'].includes(url.hostname)) return;
  throw final(`${url.protocol}//${url.host} is not https`);
}

async function body(answer) {
  if (answer.status !== 200) {
    await answer.body?.cancel();
    const passing = answer.status === 408 || answer.status === 429 || answer.status >= 500;
    throw Object.assign(new Error(`the host answers ${answer.status} ${answer.statusText}`), { final: !passing });
  }
  const chunks = [];
  let size = 0;
  for await (const chunk of answer.body) {
    size += chunk.length;
    if (size > MAX_BYTES) throw final(`more than ${MAX_BYTES} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

module.exports = { download, MAX_BYTES };
