/**
 * vhost-user messages, frontend to backend (QEMU docs/interop/vhost-user.rst, "Front-end message types"), declared
 * once: code, payload size, descriptors, what must have been negotiated, and whether the message has a reply of
 * its own. Messages without one are acknowledged when the frontend sets NEED_REPLY.
 */

export const HEADER_BYTES = 12;
export const VERSION = 1;
export const VERSION_MASK = 3;
export const FLAG_REPLY = 1 << 2;
export const FLAG_NEED_REPLY = 1 << 3;
/** In the payload of SET_VRING_KICK/CALL/ERR: no descriptor came along. */
export const VRING_NOFD = 1 << 8;
export const VRING_INDEX_MASK = 0xff;
/** No payload that we accept is larger (SET_MEM_TABLE, CONFIG). */
export const PAYLOAD_MAX_BYTES = 4096;

/** Protocol feature bits (VHOST_USER_PROTOCOL_F_*). */
export const PF = {
  MQ: 0,
  LOG_SHMFD: 1,
  REPLY_ACK: 3,
  BACKEND_REQ: 5,
  CONFIG: 9,
  BACKEND_SEND_FD: 10,
  INFLIGHT_SHMFD: 12,
  RESET_DEVICE: 13,
  CONFIGURE_MEM_SLOTS: 15,
  STATUS: 16,
} as const;

export interface MessageSpec {
  readonly code: number;
  /** Payload bytes, least and most. */
  readonly bytes: readonly [number, number];
  /** Descriptors, least and most. */
  readonly fds: readonly [number, number];
  /** Protocol feature that must be negotiated, or −1. */
  readonly feature: number;
  /** Has a reply of its own, so that NEED_REPLY does not apply. */
  readonly reply: boolean;
}

const NONE = -1;
const REGION_BYTES = 32;
export const TABLE_REGIONS_MAX = 8;

function m(code: number, bytes: readonly [number, number], fds: readonly [number, number] = [0, 0], feature = NONE, reply = false): MessageSpec {
  return { code, bytes, fds, feature, reply };
}

export const MESSAGES = {
  GET_FEATURES: m(1, [0, 0], [0, 0], NONE, true),
  SET_FEATURES: m(2, [8, 8]),
  SET_OWNER: m(3, [0, 0]),
  RESET_OWNER: m(4, [0, 0]),
  SET_MEM_TABLE: m(5, [8, 8 + TABLE_REGIONS_MAX * REGION_BYTES], [0, TABLE_REGIONS_MAX]),
  SET_LOG_BASE: m(6, [16, 16], [1, 1], PF.LOG_SHMFD, true),
  SET_LOG_FD: m(7, [0, 8], [0, 1]),
  SET_VRING_NUM: m(8, [8, 8]),
  SET_VRING_ADDR: m(9, [40, 40]),
  SET_VRING_BASE: m(10, [8, 8]),
  GET_VRING_BASE: m(11, [8, 8], [0, 0], NONE, true),
  SET_VRING_KICK: m(12, [8, 8], [0, 1]),
  SET_VRING_CALL: m(13, [8, 8], [0, 1]),
  SET_VRING_ERR: m(14, [8, 8], [0, 1]),
  GET_PROTOCOL_FEATURES: m(15, [0, 0], [0, 0], NONE, true),
  SET_PROTOCOL_FEATURES: m(16, [8, 8]),
  GET_QUEUE_NUM: m(17, [0, 0], [0, 0], PF.MQ, true),
  SET_VRING_ENABLE: m(18, [8, 8]),
  SET_BACKEND_REQ_FD: m(21, [0, 8], [1, 1], PF.BACKEND_REQ),
  GET_CONFIG: m(24, [12, 12 + 256], [0, 0], PF.CONFIG, true),
  SET_CONFIG: m(25, [12, 12 + 256], [0, 0], PF.CONFIG),
  GET_INFLIGHT_FD: m(31, [20, 24], [0, 0], PF.INFLIGHT_SHMFD, true),
  SET_INFLIGHT_FD: m(32, [20, 24], [1, 1], PF.INFLIGHT_SHMFD),
  RESET_DEVICE: m(34, [0, 0], [0, 0], PF.RESET_DEVICE),
  GET_MAX_MEM_SLOTS: m(36, [0, 0], [0, 0], PF.CONFIGURE_MEM_SLOTS, true),
  ADD_MEM_REG: m(37, [8 + REGION_BYTES, 8 + REGION_BYTES], [1, 1], PF.CONFIGURE_MEM_SLOTS),
  REM_MEM_REG: m(38, [8 + REGION_BYTES, 8 + REGION_BYTES], [0, 1], PF.CONFIGURE_MEM_SLOTS),
  SET_STATUS: m(39, [8, 8], [0, 0], PF.STATUS),
  GET_STATUS: m(40, [0, 0], [0, 0], PF.STATUS, true),
} as const;

export type MessageName = keyof typeof MESSAGES;

const BY_CODE = new Map<number, MessageName>(Object.entries(MESSAGES).map(([name, spec]) => [spec.code, name as MessageName]));

/** Name of a message code, or undefined for one that we do not know. */
export function messageName(code: number): MessageName | undefined {
  return BY_CODE.get(code);
}

export interface Header {
  code: number;
  flags: number;
  size: number;
}

export function decodeHeader(bytes: DataView): Header {
  return { code: bytes.getUint32(0, true), flags: bytes.getUint32(4, true), size: bytes.getUint32(8, true) };
}

/** A reply: header and payload. */
export function encodeReply(code: number, payload: Uint8Array): Uint8Array {
  const message = new Uint8Array(HEADER_BYTES + payload.length);
  const view = new DataView(message.buffer);
  view.setUint32(0, code, true);
  view.setUint32(4, VERSION | FLAG_REPLY, true);
  view.setUint32(8, payload.length, true);
  message.set(payload, HEADER_BYTES);
  return message;
}

export function encodeU64(value: bigint): Uint8Array {
  const payload = new Uint8Array(8);
  new DataView(payload.buffer).setBigUint64(0, value, true);
  return payload;
}
