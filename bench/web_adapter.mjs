// node web_adapter.mjs MODEL.onnx FOLDER PACKAGES: FOLDER/request.json says which inputs lie in which files; writes
// FOLDER/answer.json and a file for each output. PACKAGES: the folder that has node_modules.
import fs from 'fs';
import { createRequire } from 'module';
import path from 'path';

const [, , model, folder, packages] = process.argv;
const ort = createRequire(path.join(packages, 'x.js'))('onnxruntime-web');
const arrays = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array, int8: Int8Array, bool: Uint8Array };
ort.env.wasm.numThreads = 1;
const options = { executionProviders: ['wasm'], graphOptimizationLevel: 'all' };
const session = await ort.InferenceSession.create(fs.readFileSync(model), options);
const feeds = {};
for (const [name, item] of Object.entries(JSON.parse(fs.readFileSync(path.join(folder, 'request.json'))))) {
  const bytes = fs.readFileSync(item.file);
  const data = new arrays[item.type](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  feeds[name] = new ort.Tensor(item.type, data, item.dims);
}
const results = await session.run(feeds);
const answer = session.outputNames.map((name, index) => {
  const { data, dims, type } = results[name];
  const file = `output${index}.bin`;
  fs.writeFileSync(path.join(folder, file), Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  return { file, type, dims };
});
fs.writeFileSync(path.join(folder, 'answer.json'), JSON.stringify(answer));
