// Fetch an npm package ready built, in the one version of a pin: node fetch.mjs FOLDER [PIN.json]
//
// Without a pin it is OHIF in the version of pin.json: the demonstration serves it, and the tests look through
// it. FOLDER/dist is the viewer then and FOLDER/package.json says which. Nothing is unpacked from a package
// with another hash than the recorded one.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

const folder = resolve(process.argv[2]);
const pin = JSON.parse(readFileSync(process.argv[3] ?? new URL('pin.json', import.meta.url), 'utf8'));
const files = pin.files ?? ['dist', 'package.json'];
const download = mkdtempSync(join(tmpdir(), 'ohif-'));

function run(program, ...options) {
  const done = spawnSync(program, options, { cwd: download, stdio: ['ignore', 'ignore', 'inherit'] });
  if (done.error) throw new Error(`${program} does not run (${done.error.code})`);
  if (done.status !== 0) throw new Error(`${program} ${options[0]} failed`);
}

try {
  run('npm', 'pack', '--silent', `${pin.name}@${pin.version}`);
  const tarball = join(download, readdirSync(download).find(name => name.endsWith('.tgz')));
  const digest = createHash('sha512').update(readFileSync(tarball)).digest('base64');
  if (`sha512-${digest}` !== pin.integrity) throw new Error(`sha512-${digest} is not the hash in pin.json`);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  run('tar', '-xzf', tarball, '-C', folder, '--strip-components=1', ...files.map(name => `package/${name}`));
} catch (fault) {
  console.error(`${pin.name} ${pin.version} was not fetched: ${fault.message}`);
  process.exitCode = 1;
} finally {
  rmSync(download, { recursive: true, force: true });
}
